"""PgBouncer: whether one stands between, in which mode, and whether we know."""

from __future__ import annotations

from taskflux.cli.doctor.findings import Finding, Subject
from taskflux.store.checkup import Pooling, pooling
from taskflux.store.errors import StoreError
from taskflux.store.settings import PostgresSettings

POSTGRES = Subject("PostgreSQL")


async def examine(settings: PostgresSettings) -> list[Finding]:
    """Ask over two connections of its own."""
    try:
        return [judge(await pooling(settings), settings.pooler)]
    except StoreError as error:
        return [POSTGRES.warning("pooler", f"it could not be found out: {error}", "run the doctor again")]


def judge(found: Pooling, told_so: bool) -> Finding:
    """What stands there against `TASKFLUX_POSTGRES__POOLER`."""
    if found.between and not told_so:
        what = "one in transaction mode" if found.transaction else "one"
        make = POSTGRES.problem if found.transaction else POSTGRES.warning
        return make(
            "pooler",
            f"there is {what}, and TASKFLUX_POSTGRES__POOLER is false: prepared statements may meet another connection",
            "set TASKFLUX_POSTGRES__POOLER=true, and TASKFLUX_POSTGRES__MIGRATE_DSN to PostgreSQL's own address",
        )
    if told_so and not found.between:
        return POSTGRES.warning(
            "pooler",
            "TASKFLUX_POSTGRES__POOLER is true, and none stands between: every statement is prepared anew",
            "set it to false, unless the connections of other processes do go through one",
        )
    return POSTGRES.ok("pooler", "as the settings say: " + ("one stands between" if found.between else "none"))
