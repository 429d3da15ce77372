"""`make chaos`: faults on real processes for as long as asked, then the proof that nobody could tell.

Exit status 0: every answer has the bits of an undisturbed run, none is missing, none came twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import uvloop

from tests.chaos.campaign import Campaign, Options
from tests.chaos.network import enter_namespace
from tests.chaos.plan import Kind
from tests.chaos.report import Summary, page


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults happen")
    parser.add_argument("--kills", type=int, default=15, help="how many servers are killed in that time")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and the texts")
    parser.add_argument("--servers", type=int, default=3, help="server processes, at least 2")
    parser.add_argument("--streams", type=int, default=64, help="streams that are live at any time")
    parser.add_argument("--steps-per-s", type=float, default=3.0, help="of each stream")
    parser.add_argument("--durability", default="checkpoint", choices=["step", "checkpoint"], help="of the sequences")
    parser.add_argument(
        "--replicas-to-write", type=int, default=1, help="min-replicas-to-write of Redis; 0: it loses more"
    )
    parser.add_argument("--without", type=Kind, nargs="*", default=[], help="kinds of faults that do not happen")
    parser.add_argument("--json", type=Path, help="file for the summary")
    parser.add_argument("--folder", type=Path, help="empty folder for the logs, which are kept; else they are not")
    return parser.parse_args()


async def _run(arguments: argparse.Namespace, folder: Path) -> Summary:
    """The campaign, as a task that Ctrl-C and SIGTERM cancel, in the background of a script as well."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    options = Options(
        seconds=arguments.seconds,
        kills=arguments.kills,
        seed=arguments.seed,
        servers=arguments.servers,
        streams=arguments.streams,
        steps_per_s=arguments.steps_per_s,
        durability=arguments.durability,
        replicas_to_write=arguments.replicas_to_write,
        without=frozenset(arguments.without),
    )
    return await Campaign(options, folder).run()


def main() -> int:
    """Runs a campaign and tells its exit status."""
    arguments = _parsed()
    enter_namespace()
    with tempfile.TemporaryDirectory(prefix="ss-chaos-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        told = uvloop.run(_run(arguments, folder))
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(told), indent=2) + "\n", encoding="utf-8")
    print(page(told))
    return 0 if told.good else 1


if __name__ == "__main__":
    sys.exit(main())
