"""`python -m tests.kafka`: is there all that `make test-kafka` needs? Resolves the server's jars."""

from __future__ import annotations

import sys

from taskflux.local.console import Trouble
from tests.kafka.classpath import java, server_classpath


def main() -> int:
    """0 when a broker can be started; else 1, with a sentence on standard error."""
    try:
        java()
        jars = server_classpath().count(".jar")
    except Trouble as trouble:
        print(f"make test-kafka: {trouble}", file=sys.stderr)
        return 1
    print(f"Apache Kafka: {jars} jars resolved")
    return 0


if __name__ == "__main__":
    sys.exit(main())
