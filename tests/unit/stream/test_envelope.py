import json
import random
import uuid

import pytest

from taskflux.stream.envelope import Envelope, Foreign, Headers, Poison, Record, decode, encode

ID = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TYPES = frozenset({"email"})


def record(value: bytes | None, headers: Headers = (), key: bytes | None = b"k") -> Record:
    return Record("tasks.email", 3, 17, 1_700_000_000_000, key, value, headers)


def decoded(value: bytes | None) -> Envelope | Foreign | Poison:
    return decode(record(value), max_bytes=10_000, types=TYPES)


def error_of(value: bytes | None) -> str:
    found = decoded(value)
    assert isinstance(found, Poison)
    assert found.reason
    return str(found.error_class)


@pytest.mark.parametrize("envelope", [Envelope(ID, "email", 7), Envelope(ID, "email", 0, TRACE, probe=True)])
def test_an_envelope_is_decoded_as_it_was_encoded(envelope: Envelope) -> None:
    key, value, headers = encode(envelope)
    assert decode(Record("tasks.email", 0, 0, 0, key, value, headers), max_bytes=1000, types=TYPES) == envelope


def test_a_record_holds_three_fields_and_the_trace_and_nothing_else() -> None:
    key, value, headers = encode(Envelope(ID, "email", 7, TRACE))
    assert key == str(ID).encode()
    assert value == b'{"taskId":"01890a5d-ac96-774b-bcce-b302099a8057","taskType":"email","version":7}'
    assert headers == (("traceparent", TRACE.encode()),)


def test_a_partition_key_stands_in_for_the_id() -> None:
    assert encode(Envelope(ID, "email", 7), "customer-1").key == b"customer-1"
    assert encode(Envelope(ID, "email", 7), "\ud800").key == b"\\ud800"


@pytest.mark.parametrize("trace", [b"", b"00-xyz", TRACE.encode() + b"x", TRACE.upper().encode(), None])
def test_a_malformed_trace_is_dropped(trace: bytes | None) -> None:
    found = decode(
        record(encode(Envelope(ID, "email", 1)).value, (("traceparent", trace),)), max_bytes=1000, types=TYPES
    )
    assert found == Envelope(ID, "email", 1)


def test_another_producers_task_is_foreign_and_keeps_its_payload_and_record() -> None:
    value = b'{"taskId": "abc-1", "taskType": "email", "payload": {"to": "a@b.example"}, "priority": 3}'
    found = decoded(value)
    assert isinstance(found, Foreign)
    assert (found.task_id, found.task_type, found.payload) == ("abc-1", "email", '{"to":"a@b.example"}')
    assert found.record.value == value


@pytest.mark.parametrize("task_id", ["", ', "taskId": null'])
def test_a_foreign_task_needs_no_id(task_id: str) -> None:
    found = decoded(f'{{"taskType": "email", "payload": "text"{task_id}}}'.encode())
    assert isinstance(found, Foreign)
    assert found.task_id is None


def test_a_foreign_number_is_an_id_too() -> None:
    found = decoded(b'{"taskId": 42, "taskType": "email", "payload": null}')
    assert isinstance(found, Foreign)
    assert found.task_id == "42"


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (None, "NoValue"),
        (b"", "NotJson"),
        (b"hello", "NotJson"),
        (b"\xff\xfe", "NotJson"),
        (b'{"taskType": "email", "payload": NaN}', "NotJson"),
        (b"[" * 5000, "NotJson"),
        (b"1" * 5000, "NotJson"),
        (b"[]", "UnknownShape"),
        (b"null", "UnknownShape"),
        (b"{}", "UnknownShape"),
        (b'{"taskType": 1, "payload": 1}', "UnknownShape"),
        (b'{"taskType": "email"}', "UnknownShape"),
        (b'{"taskType": "email", "taskId": "not a uuid", "version": 1}', "UnknownShape"),
        (b'{"taskType": "email", "taskId": "%s"}' % str(ID).encode(), "UnknownShape"),
        (b'{"taskType": "email", "taskId": "%s", "version": "1"}' % str(ID).encode(), "UnknownShape"),
        (b'{"taskType": "email", "taskId": "%s", "version": true}' % str(ID).encode(), "UnknownShape"),
        (b'{"taskType": "email", "taskId": "%s", "version": -1}' % str(ID).encode(), "UnknownShape"),
        (b'{"taskType": "email", "taskId": "%s", "version": 9223372036854775808}' % str(ID).encode(), "UnknownShape"),
        (b'{"taskType": "email", "taskId": {}, "payload": 1}', "UnknownShape"),
        (b'{"taskType": "email", "taskId": "\\u0000", "payload": 1}', "UnknownShape"),
        (b'{"taskType": "email", "payload": "\\ud800"}', "NotJson"),
        (b'{"taskType": "email", "payload": 1e999}', "InvalidPayload"),
        (b'{"taskType": "email", "payload": ' + b"[" * 65 + b"]" * 65 + b"}", "NotJson"),
        (b'{"taskType": "sms", "payload": 1}', "UnknownType"),
        (b'{"taskType": "\\u0000", "payload": 1}', "UnknownType"),
        (b'{"taskType": "email", "payload": "%s"}' % (b"x" * 10_000), "TooLarge"),
    ],
)
def test_a_record_that_cannot_run_is_poison_of_a_bounded_class(value: bytes | None, error: str) -> None:
    assert error_of(value) == error


@pytest.mark.parametrize(
    "value", [b'{"taskType": "email", "payload": 1}', encode(Envelope(ID, "email", 7)).value or b""]
)
def test_a_byte_order_mark_before_a_value_is_skipped_as_over_http(value: bytes) -> None:
    marked, bare = decoded(b"\xef\xbb\xbf" + value), decoded(value)
    assert type(marked) is type(bare)
    if isinstance(marked, Foreign) and isinstance(bare, Foreign):
        assert (marked.payload, marked.digest) == (bare.payload, bare.digest)
        assert (marked.record.value or b"").startswith(b"\xef\xbb\xbf")
    else:
        assert marked == bare


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_value_in_utf_16_is_poison_that_says_so(encoding: str) -> None:
    found = decoded('{"taskType": "email", "payload": 1}'.encode(encoding))
    assert isinstance(found, Poison)
    assert (found.error_class, "UTF-16" in found.reason) == ("NotJson", True)


def test_the_reason_of_poison_is_ascii_and_does_not_quote_the_payload() -> None:
    found = decoded(b'{"taskType": "\\u00e9\\u0000", "payload": "secret"}')
    assert isinstance(found, Poison)
    assert found.reason.encode("ascii")
    assert "secret" not in found.reason


def test_a_record_that_the_client_could_not_parse_is_poison() -> None:
    unreadable = Record("tasks.email", 0, 5, 0, None, None, unreadable="no codec for zstd")
    assert decode(unreadable, max_bytes=1000) == Poison("Unreadable", "no codec for zstd")


def test_headers_count_towards_the_size() -> None:
    found = decode(record(b"{}", (("h", b"x" * 2000),)), max_bytes=1000)
    assert isinstance(found, Poison)
    assert found.error_class == "TooLarge"


def test_without_a_list_any_valid_type_name_is_accepted() -> None:
    found = decode(record(b'{"taskType": "resize", "payload": 1}'), max_bytes=1000)
    assert isinstance(found, Foreign)
    assert isinstance(decode(record(b'{"taskType": "Re size", "payload": 1}'), max_bytes=1000), Poison)


def test_a_record_written_by_us_says_the_same_as_any_json_of_the_same_meaning() -> None:
    """One is read by a pattern and the other as JSON, whatever was changed in it: a space behind it has no meaning."""
    generator = random.Random(15)
    kinds = set()
    for number in range(5000):
        envelope = Envelope(
            uuid.UUID(int=generator.getrandbits(128)),
            generator.choice(["email", "email", "email", "sms", "dlq", "a.b_c-0", "e" * 100, "e" * 101, "-email"]),
            generator.choice([0, 1, 10, 2**31 - 1, 2**31, 10**9, generator.getrandbits(30), generator.getrandbits(40)]),
            generator.choice([None, TRACE, "00-xyz"]),
            generator.random() < 0.3,
        )
        _, value, headers = encode(envelope)
        text = bytearray(value or b"")
        for _ in range(number % 3):
            at = generator.randrange(len(text))
            text[at : at + generator.randrange(3)] = generator.choice([b"", b"0", b"-", b"A", b",", b'"', b"}", b"\n"])
        types = generator.choice([None, TYPES])
        ours, other = (decode(record(bytes(text) + end, headers), max_bytes=1000, types=types) for end in (b"", b" "))
        if isinstance(ours, Poison) and isinstance(other, Poison):  # what the reasons say of a place may differ
            assert ours.error_class == other.error_class
        else:
            assert ours == other
        kinds.add(type(ours))
    assert kinds == {Envelope, Poison}


def test_no_bytes_make_it_raise() -> None:
    generator = random.Random(20)
    good = [
        encode(Envelope(ID, "email", 1)).value or b"",
        json.dumps({"taskId": "a", "taskType": "email", "payload": {"a": [1, "\u20ac"]}}).encode(),
    ]
    for _ in range(5000):
        value = bytearray(generator.choice(good))
        for _ in range(generator.randint(0, 6)):
            value[generator.randrange(len(value))] = generator.randrange(256)
        if generator.random() < 0.3:
            value = bytearray(generator.randbytes(generator.randint(0, 60)))
        found = decode(
            record(bytes(value), (("traceparent", generator.randbytes(8)),), generator.randbytes(4)),
            max_bytes=200,
            types=None if generator.random() < 0.5 else TYPES,
        )
        assert isinstance(found, Envelope | Foreign | Poison)
