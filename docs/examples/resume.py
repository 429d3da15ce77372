"""A text that goes on in another process: `python docs/examples/resume.py [host:port]`."""

import asyncio
import sys
import uuid

from statestream import AsyncClient


async def begin(address: str, sequence_id: str) -> None:
    """The first program names the sequence, sends two pieces, and ends."""
    async with AsyncClient(address) as client, client.sentiment.stream(sequence_id) as stream:
        await stream.send("A wonderful film, ")
        update = await stream.send("and the actors are ")
        print(f"left after step {update.header.step}")


async def go_on(address: str, sequence_id: str) -> None:
    """The second one, perhaps tomorrow and on another machine, knows the name only."""
    async with AsyncClient(address) as client:
        async with client.sentiment.stream(sequence_id, resume=True) as stream:
            print(f"taken up, next is step {stream.next_step}")
            update = await stream.send("superb.", end=True)
        print(f"{update.sentiment.label} over {update.sentiment.word_count} words, ended: {update.header.ended}")


async def main(address: str) -> None:
    """Both, one after the other, over connections of their own."""
    sequence_id = f"example-{uuid.uuid4().hex}"
    await begin(address, sequence_id)
    await go_on(address, sequence_id)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"))
