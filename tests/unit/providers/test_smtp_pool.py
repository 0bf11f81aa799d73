from contextlib import AsyncExitStack

import pytest

from taskflux.providers.smtp_replies import Throttled
from taskflux.providers.smtp_session import CALM, Slots


async def complain(slots: Slots) -> None:
    """The server wants fewer connections."""
    with pytest.raises(Throttled):
        async with slots.slot():
            raise Throttled("421 busy")


async def go_well(slots: Slots, mails: int) -> None:
    for _ in range(mails):
        async with slots.slot():
            pass


async def test_a_complaint_halves_the_connections_but_leaves_one() -> None:
    slots = Slots(8)
    for wanted in (4, 2, 1, 1):
        await complain(slots)
        assert slots.wanted == wanted


async def test_a_slot_too_many_is_not_handed_out_again() -> None:
    slots = Slots(2)
    async with slots.slot():
        await complain(slots)
        assert (slots.wanted, slots.busy) == (1, 1)
        assert slots._free.locked()
    assert not slots._free.locked()


async def test_a_run_of_mails_that_went_well_brings_back_one_connection_at_a_time() -> None:
    slots = Slots(4)
    await complain(slots)
    await go_well(slots, CALM - 1)
    assert slots.wanted == 2
    await go_well(slots, 1)
    assert slots.wanted == 3
    await go_well(slots, 5 * CALM)
    assert slots.wanted == 4


async def test_as_many_slots_as_at_first_remain_after_a_complaint_was_lived_down() -> None:
    slots = Slots(4)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(slots.slot())
        await complain(slots)
    await go_well(slots, 5 * CALM)
    async with AsyncExitStack() as stack:
        for _ in range(4):
            assert not slots._free.locked()
            await stack.enter_async_context(slots.slot())
        assert slots._free.locked()
