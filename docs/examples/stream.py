"""A text while it is being written, asyncio: `python docs/examples/stream.py [host:port]`."""

import asyncio
import sys
from collections.abc import AsyncIterator

from statestream import AsyncClient


async def typing() -> AsyncIterator[str]:
    """Stands for whatever produces the text; the cuts may be anywhere, inside a word too."""
    for piece in ("A wonder", "ful film, and the la", "st scene is beau", "tiful."):
        yield piece


async def main(address: str) -> None:
    """Shows the sentiment after each piece, and the final one."""
    async with AsyncClient(address) as client:
        async for update in client.sentiment.classify_stream(typing()):
            result = update.sentiment
            print(f"step {update.header.step}: {result.label} after {result.word_count} words, final: {update.final}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"))
