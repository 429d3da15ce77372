"""What an operator may write to say where Redis is, and what is said of mistakes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from services.cli.settings import wrong_settings
from services.runtime.config import Settings
from services.runtime.core.redis_address import Host, Login, RedisAddress, Topology, parse_redis_address
from tests.kit.certificates import Certificates

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = Login(None, None)

READ = {
    "redis://host": RedisAddress(Topology.STANDALONE, (Host("host", 6379),), NOBODY),
    "redis://:word@host:1/2": RedisAddress(Topology.STANDALONE, (Host("host", 1),), Login(None, "word"), database=2),
    "rediss://user:w%40%2F%25rd@[::1]:1/": RedisAddress(
        Topology.STANDALONE, (Host("::1", 1),), Login("user", "w@/%rd"), tls=True
    ),
    "unix:///run/redis.sock": RedisAddress(Topology.STANDALONE, (), NOBODY, path="/run/redis.sock"),
    "unix://user:word@/run/redis.sock?db=3": RedisAddress(
        Topology.STANDALONE, (), Login("user", "word"), path="/run/redis.sock", database=3
    ),
    "redis+sentinel://one,two:2,[::3]:3/main": RedisAddress(
        Topology.SENTINEL, (Host("one", 26379), Host("two", 2), Host("::3", 3)), NOBODY, service="main"
    ),
    "rediss+sentinel://user:word@one/main/4?sentinel_user=s&sentinel_password=w%26": RedisAddress(
        Topology.SENTINEL,
        (Host("one", 26379),),
        Login("user", "word"),
        tls=True,
        service="main",
        database=4,
        sentinel_login=Login("s", "w&"),
    ),
    "redis+cluster://user:word@one,two:2": RedisAddress(
        Topology.CLUSTER, (Host("one", 6379), Host("two", 2)), Login("user", "word")
    ),
    "rediss+cluster://one": RedisAddress(Topology.CLUSTER, (Host("one", 6379),), NOBODY, tls=True),
}

WRONG = [
    "",
    "host:6379",
    "http://host",
    "redis://",
    "redis://:s3cret@",
    "redis://:s3cret@host:port",
    "redis://:s3cret@host:0",
    "redis://:s3cret@host:65536",
    "redis://:s3cret@host:",
    "redis://:s3cret@host/zero",
    "redis://:s3cret@host/-1",
    "redis://:s3cret@host/0/1",
    "redis://:s3cret@one,two",
    "redis://:s3cret@host?ssl_ca_certs=x",
    "redis://:s3cret@host#s3cret",
    "redis://:s3cret/with/slashes@host",
    "redis://:s3cret?with@host",
    "redis://:s3cret@[::1",
    "redis://:s3cret@[::1]1",
    "redis+sentinel://:s3cret@host",
    "redis+sentinel://:s3cret@host/main/0/1",
    "redis+sentinel://:s3cret@host/main?sentinel_word=s3cret",
    "redis+sentinel://:s3cret@host/main?sentinel_password=s3cret&sentinel_password=s3cret",
    "redis+cluster://:s3cret@host/1",
    "redis+cluster://:s3cret@one,,two",
    "redis+other://:s3cret@host",
    "rediss+unix://:s3cret@/path",
    "unix+cluster://:s3cret@host",
    "unix://:s3cret@host/path",
    "unix://:s3cret@",
    "unix://:s3cret@/path?database=1",
]


@pytest.mark.parametrize("text", READ)
def test_an_address_is_read(text: str) -> None:
    """Each form, with and without what may be left out."""
    assert parse_redis_address(text) == READ[text]


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_address_is_named_and_not_repeated(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which variable it is and what would be right; nothing of a password is in it."""
    monkeypatch.setenv("STATESTREAM_REDIS_URL", text)
    with pytest.raises(ValidationError) as wrong:
        Settings()
    (line,) = wrong_settings(wrong.value)
    assert line.startswith("STATESTREAM_REDIS_URL: ")
    assert "redis+cluster://" in line
    assert "s3cret" not in line + str(wrong.value) + repr(wrong.value)


def test_a_password_is_not_shown() -> None:
    """Not even where somebody prints the address that was read."""
    assert "word" not in repr(parse_redis_address("redis+sentinel://user:word@host/main?sentinel_password=word"))


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    """Certificates."""
    return Certificates(tmp_path)


def test_files_for_tls_are_taken(files: Certificates) -> None:
    """An authority, and a certificate with its key."""
    settings = Settings.model_validate(
        {
            "redis_url": "rediss://host",
            "redis_tls_ca": files.ca,
            "redis_tls_certificate": files.client,
            "redis_tls_key": files.client_key,
        }
    )
    assert settings.redis_tls_key == files.client_key


@pytest.mark.parametrize(
    ("url", "given", "named"),
    [
        ("redis://host", {"redis_tls_ca": "ca"}, "redis_tls_ca"),
        ("rediss://host", {"redis_tls_ca": "absent"}, "redis_tls_ca"),
        ("rediss://host", {"redis_tls_ca": "client_key"}, "redis_tls_ca"),
        ("rediss://host", {"redis_tls_certificate": "client"}, "redis_tls_key"),
        ("rediss://host", {"redis_tls_key": "client_key"}, "redis_tls_certificate"),
        ("rediss://host", {"redis_tls_certificate": "client", "redis_tls_key": "server_key"}, "redis_tls_key"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    files: Certificates, tmp_path: Path, url: str, given: dict[str, str], named: str
) -> None:
    """Without TLS, missing, no PEM, one without the other, a key of another certificate: the server does not start."""
    values = {name: getattr(files, file, tmp_path / "absent.pem") for name, file in given.items()}
    with pytest.raises(ValidationError) as wrong:
        Settings.model_validate({"redis_url": url, **values})
    assert named in "\n".join(wrong_settings(wrong.value)).lower()
