import random
import uuid

import pytest

from taskflux.stream.envelope import (
    DeadPoison,
    DeadTask,
    Encoded,
    Headers,
    Origin,
    Poison,
    Record,
    decode_dead,
    encode,
    encode_poison,
)

ID = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
POISON = Poison("NotJson", "the value is not JSON at character 0")


def on_dlq(encoded: Encoded) -> Record:
    return Record("tasks.dlq", 1, 99, 1_800_000_000_000, *encoded)


@pytest.mark.parametrize("trace", [None, TRACE])
def test_a_dead_task_is_decoded_as_it_was_encoded(trace: str | None) -> None:
    task = DeadTask(ID, "email", 12, "Permanent", 6, trace)
    assert decode_dead(on_dlq(encode(task))) == task


def test_a_dead_tasks_record_carries_no_reason() -> None:
    _, value, headers = encode(DeadTask(ID, "email", 12, "Permanent", 6))
    assert value == (
        b'{"taskId":"01890a5d-ac96-774b-bcce-b302099a8057","taskType":"email","version":12,'
        b'"errorClass":"Permanent","attempts":6}'
    )
    assert headers == ()


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (b"k", b"\x00\xff not json", ()),
        (None, None, ()),
        (b"", b"", (("a", b"1"), ("a", None), ("", b"\xff"))),
        (b"k", b"v", (("taskflux-reason", b"mine"), ("traceparent", b"x"))),
    ],
)
def test_a_poison_record_keeps_key_value_and_headers_untouched(
    key: bytes | None, value: bytes | None, headers: Headers
) -> None:
    record = Record("tasks.email", 3, 17, 1_700_000_000_000, key, value, headers)
    encoded = encode_poison(record, POISON)
    assert (encoded.key, encoded.value) == (key, value)
    assert encoded.headers[: len(headers)] == headers
    assert decode_dead(on_dlq(encoded)) == DeadPoison(
        key, value, headers, Origin("tasks.email", 3, 17, 1_700_000_000_000), "NotJson", POISON.reason
    )


def test_the_dead_letter_of_a_dead_letter_is_unwrapped_once() -> None:
    first = encode_poison(Record("tasks.email", 0, 1, 2, b"k", b"v"), POISON)
    second = encode_poison(Record("tasks.sms", 5, 6, 7, *first), Poison("UnknownType", "no such type"))
    found = decode_dead(on_dlq(second))
    assert isinstance(found, DeadPoison)
    assert (found.origin.topic, found.error_class, found.headers) == ("tasks.sms", "UnknownType", first.headers)


def test_a_long_or_unusual_reason_fits_a_header_and_a_column() -> None:
    encoded = encode_poison(Record("t", 0, 0, 0, b"k", b"v"), Poison("X" * 500, "\ud800\0" + "y" * 10_000))
    found = decode_dead(on_dlq(encoded))
    assert isinstance(found, DeadPoison)
    assert found.reason.startswith("\\ud800\ufffdyyy")
    assert len(found.reason) < 2100
    assert len(found.error_class) == 100


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"nonsense",
        b"[]",
        b'{"taskId":"x","taskType":"email","version":1,"errorClass":"E","attempts":1}',
        b'{"taskId":"%s","taskType":"EMAIL","version":1,"errorClass":"E","attempts":1}' % str(ID).encode(),
        b'{"taskId":"%s","taskType":"email","version":1,"errorClass":"","attempts":1}' % str(ID).encode(),
        b'{"taskId":"%s","taskType":"email","version":1,"errorClass":7,"attempts":1}' % str(ID).encode(),
        b'{"taskId":"%s","taskType":"email","version":1,"errorClass":"E","attempts":1%s}'
        % (str(ID).encode(), b"0" * 5000),
        b'{"taskId":"%s","taskType":"email","version":1,"errorClass":"E","attempts":-1}' % str(ID).encode(),
        b'{"taskId":"%s","taskType":"email","version":1,"errorClass":"E","attempts":true}' % str(ID).encode(),
        b'{"taskId":"%s","taskType":"email","version":1}' % str(ID).encode(),
    ],
)
def test_a_dead_letter_that_cannot_be_read_is_kept_with_its_bytes_and_its_place(value: bytes | None) -> None:
    found = decode_dead(Record("tasks.dlq", 1, 99, 5, b"k", value, (("h", b"1"),)))
    assert isinstance(found, DeadPoison)
    assert found.error_class == "MalformedDeadLetter"
    assert found.reason
    assert (found.key, found.value, found.headers) == (b"k", value, (("h", b"1"),))
    assert found.origin == Origin("tasks.dlq", 1, 99, 5)


def test_a_dead_letter_that_the_client_could_not_parse_is_kept_with_its_reason() -> None:
    found = decode_dead(Record("tasks.dlq", 1, 99, 5, None, b"\x00batch", unreadable="its codec is unknown"))
    assert isinstance(found, DeadPoison)
    assert (found.error_class, found.reason, found.value) == (
        "MalformedDeadLetter",
        "its codec is unknown",
        b"\x00batch",
    )


def test_no_bytes_make_it_raise() -> None:
    generator = random.Random(21)
    whole = encode_poison(Record("tasks.email", 0, 1, 2, b"k", b"v"), POISON)
    for _ in range(3000):
        headers = tuple(
            (
                name,
                value
                if generator.random() < 0.8
                else generator.choice([None, b"", generator.randbytes(20), b"9" * 40]),
            )
            for name, value in whole.headers
            if generator.random() < 0.9
        )
        value = generator.choice([None, generator.randbytes(generator.randint(0, 40)), b"{}"])
        assert isinstance(decode_dead(Record("tasks.dlq", 0, 0, 0, None, value, headers)), DeadPoison)
