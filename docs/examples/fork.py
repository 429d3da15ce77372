"""One beginning, two endings: `python docs/examples/fork.py [host:port]`."""

import asyncio
import sys
import uuid

from statestream import AsyncClient

ENDINGS = ("and I would watch it again.", "and I want my evening back.")


async def finish(client: AsyncClient, sequence_id: str, ending: str) -> str:
    """Goes on with one fork; what the beginning has left in the state is not computed again."""
    async with client.sentiment.stream(sequence_id, resume=True) as stream:
        update = await stream.send(ending, end=True)
    return (
        f"{update.sentiment.label} after {update.sentiment.word_count} words, from step {update.header.step}: {ending}"
    )


async def main(address: str) -> None:
    """Reads the beginning once, forks it, and tries both endings at the same time."""
    name = f"example-{uuid.uuid4().hex}"
    async with AsyncClient(address) as client:
        async with client.sentiment.stream(name) as stream:
            await stream.send("Two hours in a cold cinema, ")
            await stream.send("three actors, one room, ")
        forks = await client.sequences.fork("sentiment", name, f"{name}-a", f"{name}-b")
        ids = [fork.sequence_id for fork in forks]
        for line in await asyncio.gather(*map(finish, [client] * 2, ids, ENDINGS)):
            print(line)
        found = await client.sequences.end("sentiment", name)
        print(f"the beginning is {found.status}, its forks have gone their own way")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"))
