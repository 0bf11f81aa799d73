"""`taskflux openapi`: the API's description with the built-in task types; `make docs` keeps it in docs/openapi.json."""

from __future__ import annotations

import json

import click

from taskflux.cli.loading import built_in_handlers


def static_document() -> str:
    """The document as the file holds it."""
    from taskflux.http.openapi.document import api_document

    types = {handler.type: handler.task_type().schema for handler in built_in_handlers()}
    return json.dumps(api_document(types), indent=2, ensure_ascii=False) + "\n"


@click.command()
def openapi() -> None:
    """Print the API's OpenAPI 3.1 description. A running TaskFlux serves its own, with your types, at /openapi.json."""
    click.echo(static_document(), nl=False)
