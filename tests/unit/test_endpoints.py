"""Addresses as people write them: every one that would be misread is refused, by a sentence without a word of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from taskflux.endpoints import (
    check_authority,
    check_certificate,
    check_dsn,
    check_host,
    check_redis,
    check_servers,
    check_url,
)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://ann:pass@db/tasks",
        "postgres://ann@db",
        "postgresql://ann:p%40ss%23%2F%3F@db:5432/tasks?sslmode=require",
        "postgresql://ann:pass@one:5432,two:5433/tasks?target_session_attrs=primary",
        "postgresql://ann:pass@[::1]:5432/tasks",
        "postgresql:///tasks?host=/run/postgresql&user=ann@example.org",
        "postgresql://ann:pass@db/tasks?application_name=billing&search_path=tasks",
        "postgresql://",
    ],
)
def test_a_dsn_that_asyncpg_reads_is_left_as_it_is(dsn: str) -> None:
    assert check_dsn(dsn) == dsn


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        ("postgresql://ann:s3c#ret@db/tasks", "write it as %23"),
        ("postgresql://ann:s3c/ret@db/tasks", "write it as %2F"),
        ("postgresql://ann:1/s3cret@db/tasks", "write it as %2F"),
        ("postgresql://ann:s3c?ret@db/tasks", "write it as %3F"),
        ("postgresql://ann:1?s3cret@db/tasks", "must be name=value"),
        ("postgresql://ann:s3c@ret@db/tasks", "write it as %40"),
        ("postgresql://ann:s3c@ret/x@db/tasks", "write it as %40"),
        ("postgresql://ann:s3c[ret@db/tasks", "[ as %5B"),
        ("postgresql://ann:s3c ret@db/tasks", "holds white space"),
        ("postgresql://ann:s3cret@db/tasks\n", "holds white space or a line break"),
        ("postgresql://ann:s3cret@db/tasks#s3cret", "write it as %23"),
        ("postgresql://db:s3cret/tasks", "port that is not a number between 1 and 65535"),
        ("postgresql://ann:s3cret@db:99999/tasks", "port that is not a number between 1 and 65535"),
        ("postgresql://ann:s3cret@one:1,two:0/tasks", "port that is not a number between 1 and 65535"),
        ("postgresql+asyncpg://ann:s3cret@db/tasks", "without a driver name"),
        ("jdbc:postgresql://ann:s3cret@db/tasks", "must begin with postgresql://"),
        ("ann:s3cret@db/tasks", "must begin with postgresql://"),
        ("host=db password=s3cret", "holds white space"),
        ("postgresql://ann:s3cret@db/tasks?sslmod=require", "did you mean sslmode?"),
        ("postgresql://ann:s3cret@db/tasks?sslmode=on", "sslmode must be one of disable, allow"),
        ("postgresql://ann:s3cret@db/tasks?ssl=true", "write sslmode=require"),
        ("postgresql://ann:s3cret@db/tasks?connect_timeout=3", "set TASKFLUX_POSTGRES__CONNECT_TIMEOUT instead"),
        ("postgresql://ann:s3cret@db/tasks?channel_binding=require", "leave it out"),
        ("postgresql://ann:s3cret@db/tasks?sslmode=verify-full&sslrootcert=/none/ca.pem", "sslrootcert /none/ca.pem"),
    ],
)
def test_a_dsn_that_would_be_misread_is_refused(dsn: str, says: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_dsn(dsn)
    assert says in str(refused.value)
    assert not any(part in str(refused.value) for part in ("s3c", "ret@"))


@pytest.mark.parametrize(
    "url",
    [
        "redis://cache",
        "redis://:pass@cache:6379/0",
        "rediss://ann:p%23ss@cache?ssl_cert_reqs=none&socket_keepalive=yes",
        "redis://[::1]:6379?db=2&max_connections=5&protocol=3",
        "unix:///run/redis.sock?db=1",
    ],
)
def test_an_address_that_redis_py_reads_is_left_as_it_is(url: str) -> None:
    assert check_redis(url) == url


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("cache:6379", "must begin with redis://"),
        ("valkey://:s3cret@cache", "must begin with redis://"),
        ("valkeys://:s3cret@cache", "must begin with rediss://"),
        ("redis+sentinel://:s3cret@cache", "must name one server"),
        ("redis://", "has no host"),
        ("redis://cache:s3cret", "port that is not a number between 1 and 65535"),
        ("redis://cache:65536", "port that is not a number between 1 and 65535"),
        ("redis://:s3c#ret@cache", "write it as %23"),
        ("redis://cache/s3cret", "the number of a database"),
        ("redis://cache?socket_timout=1", "the option socket_timout, which redis-py does not support"),
        ("redis://cache?socket_timeout=s3cret", "a value that redis-py cannot read"),
    ],
)
def test_an_address_of_redis_that_would_be_misread_is_refused(url: str, says: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_redis(url)
    assert says in str(refused.value)
    assert "s3c" not in str(refused.value)


@pytest.mark.parametrize("servers", ["kafka:9092", "kafka", "a:9092, b:9092", "[::1]:9092", "10.0.0.1:9092", ""])
def test_a_list_of_kafkas_servers_is_left_as_it_is(servers: str) -> None:
    assert check_servers(servers) == servers


@pytest.mark.parametrize(
    ("servers", "says"),
    [
        ("kafka://kafka:9092", "without a scheme"),
        ("SASL_SSL://kafka:9092", "without a scheme"),
        ("kafka:ninety", "must be host:port"),
        ("kafka:99999", "not between 1 and 65535"),
        ("a:9092,b:0", "server 2 of the list has a port"),
        ("a:9092,", "server 2 of the list must be host:port"),
        ("a:9092;b:9092", "must be host:port"),
        ("::1:9092", "an IPv6 address in brackets"),
        ("ann:s3cret@kafka:9092", "must be host:port"),
    ],
)
def test_a_list_of_kafkas_servers_that_would_be_misread_is_refused(servers: str, says: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_servers(servers)
    assert says in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["notify:8080", "ftp://notify", "http://", "http://notify:99999", "http://notify?x=1", "http://no tify"]
)
def test_what_is_no_base_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        check_url(url)


@pytest.mark.parametrize("host", ["smtp.example.org", "localhost", "10.0.0.1", "::1", "[::1]", "mail_relay", ""])
def test_a_host_alone_is_left_as_it_is(host: str) -> None:
    assert check_host(host) == host


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("smtp://mail", "only a host name or an IP address"),
        ("ann@mail", "only a host name or an IP address"),
        ("mail relay", "only a host name or an IP address"),
        ("mail\n", "only a host name or an IP address"),
        ("mäil", "only a host name or an IP address"),
        ("m" * 254, "only a host name or an IP address"),
        ("mail:587", "contains a port"),
    ],
)
def test_what_is_more_than_a_host_is_refused(host: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_host(host)


def test_a_file_that_is_missing_or_holds_something_else_is_named(tmp_path: Path) -> None:
    authority, other, missing = trustme.CA(), tmp_path / "other.pem", tmp_path / "missing.pem"
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    other.write_text("no certificate", encoding="utf-8")
    assert check_authority(str(tmp_path / "ca.pem")) == str(tmp_path / "ca.pem")
    for file, says in ((missing, "cannot be read: No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ValueError, match=f"{file}.*{says}"):
            check_authority(str(file))
    with pytest.raises(ValueError, match=f"{other} holds no certificate in PEM format"):
        check_authority(str(other))


def test_a_certificate_and_its_key_belong_together(tmp_path: Path) -> None:
    authority = trustme.CA()
    for name in ("one", "two"):
        issued = authority.issue_cert(f"{name}.example.org")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    check_certificate(str(tmp_path / "one.pem"), str(tmp_path / "one.key"))
    with pytest.raises(ValueError, match=r"one\.pem and .*two\.key are not a certificate and its key"):
        check_certificate(str(tmp_path / "one.pem"), str(tmp_path / "two.key"))
    with pytest.raises(ValueError, match=r"none\.key cannot be read"):
        check_certificate(str(tmp_path / "one.pem"), str(tmp_path / "none.key"))
