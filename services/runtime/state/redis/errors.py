"""What redis-py raises, in our words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from services.runtime.core.errors import CapacityExceeded, StateCorrupt, StatestreamError, StoreUnavailable

if TYPE_CHECKING:
    from redis.exceptions import RedisError

ALREADY_THERE: Final = "already exists"

_TLS: Final = {
    "certificate verify failed": "the certificate of the state store is not trusted",
    "certificate required": "the state store demands a certificate of its clients",
}


class RefusedError(StoreUnavailable):
    """The server answered with an error; `code` is its first word, such as NOPERM."""

    def __init__(self, code: str) -> None:
        super().__init__(f"the state store refused a command: {code}")
        self.code = code


def told(error: RedisError | OSError) -> StatestreamError:
    """`error` in our words: without addresses, users or anything else of the server's."""
    if isinstance(error, OutOfMemoryError):
        return CapacityExceeded("the state store is out of memory", retry_delay_s=1.0)
    if isinstance(error, ResponseError):
        code = code_of(error)
        return StateCorrupt("the stored record is not one of ours") if code == "WRONGTYPE" else RefusedError(code)
    if is_refusal_of_user(error):
        return StoreUnavailable("the state store does not take the configured user and password", retry_delay_s=5.0)
    if isinstance(error, BusyLoadingError):
        return StoreUnavailable("the state store is still loading its data", retry_delay_s=1.0)
    text = str(error).lower().replace("_", " ")
    for sign, meaning in _TLS.items():
        if sign in text:
            return StoreUnavailable(meaning, retry_delay_s=5.0)
    return StoreUnavailable("the connection to the state store failed")


def late() -> StoreUnavailable:
    """What a caller is told whose time is over."""
    return StoreUnavailable("the state store did not answer in time")


def is_refusal_of_user(error: RedisError | OSError) -> bool:
    """True if the server did not take user and password."""
    # While it connects redis-py turns its AuthenticationError into a ConnectionError with the same text.
    text = str(error)
    return isinstance(error, AuthenticationError) or "username-password" in text or "Authentication required" in text


def code_of(error: ResponseError) -> str:
    """First word of the server's answer, or `ALREADY_THERE`."""
    text = str(error)
    if ALREADY_THERE in text:
        return ALREADY_THERE
    # redis-py takes the word off those errors that it has a class for.
    if isinstance(error, NoPermissionError):
        return "NOPERM"
    if isinstance(error, ReadOnlyError):
        return "READONLY"
    word = text.partition(" ")[0]
    return word if word.isupper() else type(error).__name__
