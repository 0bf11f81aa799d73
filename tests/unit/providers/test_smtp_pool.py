from taskflux.providers.smtp_session import CALM, Slots


async def test_a_complaint_halves_the_connections_but_leaves_one() -> None:
    slots = Slots(8)
    for wanted in (4, 2, 1, 1):
        slots.slow_down()
        assert slots.wanted == wanted


async def test_a_slot_too_many_is_not_handed_out_again() -> None:
    slots = Slots(2)
    await slots.take()
    await slots.take()
    slots.slow_down()
    slots.give_back()
    assert slots._free.locked()
    slots.give_back()
    assert not slots._free.locked()


async def test_a_run_of_mails_that_went_well_brings_back_one_connection_at_a_time() -> None:
    slots = Slots(4)
    slots.slow_down()
    for _ in range(CALM - 1):
        slots.went_well()
    assert slots.wanted == 2
    slots.went_well()
    assert slots.wanted == 3
    for _ in range(5 * CALM):
        slots.went_well()
    assert slots.wanted == 4


async def test_as_many_slots_as_at_first_remain_after_a_complaint_was_lived_down() -> None:
    slots = Slots(4)
    for _ in range(4):
        await slots.take()
    slots.slow_down()
    for _ in range(4):
        slots.give_back()
    for _ in range(5 * CALM):
        slots.went_well()
    for _ in range(4):
        assert not slots._free.locked()
        await slots.take()
    assert slots._free.locked()
