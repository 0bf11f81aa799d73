"""Where MSG91 is, how it wants to be asked, and how its delivery reports find us."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

_SECRET: Final = re.compile(r"[A-Za-z0-9._~-]{16,200}")


class Msg91Settings(BaseModel):
    """MSG91, which sends our short messages."""

    model_config = ConfigDict(extra="forbid")

    base_url: Annotated[
        str, Field(pattern=r"^https?://[^\s/?#]+[^\s?#]*$", description="where the API is; the path is added")
    ] = "https://control.msg91.com"
    auth_key: Annotated[SecretStr, Field(description="the account's auth key")] = SecretStr("")
    template_id: Annotated[str, Field(description="the flow that is sent where a task names none")] = ""
    sender: Annotated[str | None, Field(description="sender id; unset: the template's")] = None
    route: Annotated[str | None, Field(description="route; unset: the account's")] = None
    short_url: Annotated[str, Field(pattern="^[01]$", description="1 shortens the URLs of a message")] = "0"
    connect_timeout: Annotated[float, Field(gt=0, description="seconds that a connection may take")] = 5.0
    read_timeout: Annotated[
        float, Field(gt=0, description="seconds that an answer may take; after it nobody knows whether it was sent")
    ] = 30.0
    connections: Annotated[int, Field(ge=1, le=1000, description="connections that one process opens at most")] = 32
    rate: Annotated[
        float | None, Field(gt=0, description="messages a second, all processes together; unset: no limit")
    ] = None

    webhook_secret: Annotated[
        SecretStr | None,
        Field(description="ingest takes delivery reports at /webhooks/msg91/<secret>; unset: it takes none"),
    ] = None

    @field_validator("webhook_secret")
    @classmethod
    def _webhook_secret_is_part_of_a_path(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _SECRET.fullmatch(value.get_secret_value()):
            raise ValueError("webhook_secret needs 16 to 200 of A-Z a-z 0-9 . _ ~ -: it is all that protects the path")
        return value

    @field_validator("auth_key")
    @classmethod
    def _auth_key_is_a_header(cls, value: SecretStr) -> SecretStr:
        key = value.get_secret_value()
        if not key.isascii() or any(char.isspace() or not char.isprintable() for char in key):
            raise ValueError("auth_key has a space or another character that cannot stand in a header")
        return value
