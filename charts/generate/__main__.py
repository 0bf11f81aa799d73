"""`python -m charts.generate`: write both files; with `--check`, only say which would change, and exit with 1 then."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from charts.generate.readme import readme
from charts.generate.schema import Undescribed, schema
from charts.generate.values import read

CHART: Final = Path(__file__).parents[1] / "taskflux"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m charts.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if something would change")
    check = parser.parse_args().check
    try:
        files = generated()
    except Undescribed as error:
        print(f"charts/taskflux/values.yaml: {error}", file=sys.stderr)
        return 1
    stale = {path: text for path, text in files.items() if not path.is_file() or path.read_text() != text}
    for path, text in stale.items():
        if check:
            print(f"{path.name} is not what values.yaml and the program say: run `make chart-docs`", file=sys.stderr)
        else:
            path.write_text(text)
            print(f"wrote {path.relative_to(CHART.parents[1])}")
    return 1 if check and stale else 0


def generated() -> Mapping[Path, str]:
    """Each file with its content. Raises Undescribed."""
    values = read((CHART / "values.yaml").read_text())
    described: dict[str, Any] = yaml.safe_load((CHART / "Chart.yaml").read_text())
    document = schema(values)
    return {
        CHART / "values.schema.json": json.dumps(document, indent=1, ensure_ascii=False) + "\n",
        CHART / "README.md": readme(described, values, (CHART / "README.in.md").read_text()),
    }


if __name__ == "__main__":
    sys.exit(main())
