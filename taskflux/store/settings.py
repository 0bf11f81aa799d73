"""How to reach PostgreSQL and Redis."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from taskflux.endpoints import DSN_FORM, REDIS_FORM, check_authority, check_dsn, check_redis


def _address(value: SecretStr, check: Callable[[str], str]) -> SecretStr:
    check(value.get_secret_value())
    return value


def keys_in(value: str) -> list[str]:
    """The keys in a comma-separated list."""
    return [key for each in value.split(",") if (key := each.strip())]


def _check_keys(value: str) -> str:
    wrong = [key for key in keys_in(value) if not _KEY.fullmatch(key)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} cannot be indexed: a key has 1 to 32 letters, digits, _ and -")
    return value


_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")

Dsn = Annotated[SecretStr, AfterValidator(partial(_address, check=check_dsn))]
RedisUrl = Annotated[SecretStr, AfterValidator(partial(_address, check=check_redis))]


class PostgresSettings(BaseModel):
    """PostgreSQL, the record of truth."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    dsn: Annotated[Dsn, Field(description=DSN_FORM)] = SecretStr("")
    migrate_dsn: Annotated[
        Dsn | None,
        Field(description="direct DSN for `taskflux migrate`, if `dsn` goes through a pooler"),
    ] = None
    pool_size: Annotated[
        int | None,
        Field(ge=1, le=100, description="connections of this process; 2 for a handler, 4 for ingest and relay"),
    ] = None
    pooler: Annotated[
        bool,
        Field(description="true behind PgBouncer in transaction mode: no prepared statements are kept on a connection"),
    ] = False
    metadata_keys: Annotated[
        str,
        AfterValidator(_check_keys),
        Field(
            description="comma-separated keys of metadata that lists find by an index; `taskflux migrate` builds it."
            " Unset: none. A list by another key is refused if a search of 10 s finds nothing"
        ),
    ] = ""
    statement_timeout: Annotated[float, Field(gt=0, description="seconds that one statement may take")] = 20.0
    connect_timeout: Annotated[float, Field(gt=0, description="seconds that opening a connection may take")] = 10.0


class RedisSettings(BaseModel):
    """Redis or Valkey, an optional accelerator: finished tasks are cached and rate limits shared."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    url: Annotated[RedisUrl | None, Field(description=f"{REDIS_FORM}; unset: no Redis")] = None
    ca_file: Annotated[
        Annotated[str, AfterValidator(check_authority)] | None,
        Field(description="PEM file of the server's CA, for an url with rediss://; unset: the system's"),
    ] = None
    timeout: Annotated[float, Field(gt=0, description="seconds after which a Redis call is abandoned")] = 0.25
    cache_seconds: Annotated[int, Field(ge=0, description="seconds that a succeeded task stays cached")] = 300

    @model_validator(mode="after")
    def _verifies_by_its_authority(self) -> RedisSettings:
        if self.ca_file and self.url is not None and not self.url.get_secret_value().startswith("rediss://"):
            raise ValueError("ca_file is set, but url does not begin with rediss://: nothing would be verified")
        return self
