"""The cache of recently used records."""

from __future__ import annotations

import pytest

from services.runtime.state.cache import RecordCache
from services.runtime.state.memory import record_bytes
from tests.kit.records import a_name, a_record

NAMES = [a_name(str(number)) for number in range(6)]
SIZE = record_bytes(a_record())


def test_it_gives_what_was_put() -> None:
    """The last record put under a name is given, another name is not there."""
    cache = RecordCache(4, 10**6)
    first, second = a_record(1), a_record(2)
    cache.put(NAMES[0], first)
    cache.put(NAMES[0], second)
    assert cache.get(NAMES[0]) is second
    assert cache.get(NAMES[1]) is None
    assert len(cache) == 1


def test_the_longest_unused_gives_way() -> None:
    """Over the bound on number the one not used for longest goes."""
    cache = RecordCache(2, 10**6)
    cache.put(NAMES[0], a_record())
    cache.put(NAMES[1], a_record())
    cache.get(NAMES[0])
    cache.put(NAMES[2], a_record())
    assert [cache.get(name) is not None for name in NAMES[:3]] == [True, False, True]


def test_bytes_are_bounded_and_counted() -> None:
    """The bound on bytes holds after every put and drop, and the count is exact."""
    cache = RecordCache(100, 3 * SIZE)
    for name in NAMES:
        cache.put(name, a_record())
        assert cache.size_bytes == len(cache) * SIZE <= 3 * SIZE
    cache.drop(NAMES[5])
    cache.drop(NAMES[5])
    assert cache.size_bytes == len(cache) * SIZE == 2 * SIZE
    cache.clear()
    assert (len(cache), cache.size_bytes) == (0, 0)


@pytest.mark.parametrize("cache", [RecordCache(0, 10**6), RecordCache(10, 0), RecordCache(10, SIZE - 1)])
def test_what_is_over_the_bounds_is_not_kept(cache: RecordCache) -> None:
    """A cache of no size keeps nothing, and an older record does not stay in place of one too large."""
    cache.put(NAMES[0], a_record())
    assert cache.get(NAMES[0]) is None
    assert (len(cache), cache.size_bytes) == (0, 0)


def test_a_record_that_grew_too_large_does_not_leave_the_old_one() -> None:
    """Putting a record that does not fit drops the one before it: it is out of date."""
    cache = RecordCache(10, SIZE)
    cache.put(NAMES[0], a_record(1))
    cache.put(NAMES[0], a_record(2, width=500))
    assert cache.get(NAMES[0]) is None
