"""Time that passes for sequences in Redis without anybody waiting: what was written is set back in time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import redis.asyncio

from services.runtime.state.redis.keys import sequence_key

if TYPE_CHECKING:
    from services.runtime.core.ids import SequenceName

SET_BACK = """
for _, field in ipairs({'x', 'b'}) do
  local at = redis.call('HGET', KEYS[1], field)
  if at then redis.call('HSET', KEYS[1], field, string.format('%.0f', at - ARGV[1])) end
end
local forget_at = redis.call('PEXPIRETIME', KEYS[1])
if forget_at > 0 then redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', forget_at - ARGV[1])) end
"""


class RedisLapse:
    """Makes the sequences that it is told older, as if `milliseconds` had passed."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __call__(self, milliseconds: int, *names: SequenceName) -> None:
        """After this, `milliseconds` have passed for `names`."""
        async with redis.asyncio.from_url(self._url) as client:
            for name in names:
                await client.eval(SET_BACK, 1, sequence_key("ss", name), milliseconds)
