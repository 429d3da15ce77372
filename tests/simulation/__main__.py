"""Runs seeds: `python -m tests.simulation 7` prints one, `--seeds 1000` runs many on all processors.

With `--mutant` the code under test is changed first; see `mutants.py`.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import sys
import time
from typing import TYPE_CHECKING

import click

from tests.simulation.mutants import MUTANTS, apply

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 25
"""Seeds that a process takes at a time."""


def _failures(seeds: range) -> list[tuple[int, str]]:
    from tests.simulation.world import run_seed  # noqa: PLC0415 - a mutant has to be there first

    gc.freeze()
    outcomes = (run_seed(seed) for seed in seeds)
    return [(outcome.seed, outcome.failure) for outcome in outcomes if outcome.failure is not None]


def run_many(seeds: range, processes: int, *, stop: bool) -> Iterator[tuple[int, str]]:
    """The seeds that fail, and why, as they are found; with `stop` no more than those of the first chunk with any."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    if processes == 1:
        for chunk in chunks:
            found = _failures(chunk)
            yield from found
            if found and stop:
                return
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for found in pool.imap(_failures, chunks):
            yield from found
            if found and stop:
                return


def show(seeds: range, *, digest: bool) -> bool:
    """Prints all that happens in some seeds, or the digests of it alone; True if one fails."""
    from tests.simulation.world import run_seed  # noqa: PLC0415 - as above

    failed = False
    for seed in seeds:
        outcome = run_seed(seed)
        failed = failed or outcome.failure is not None
        if not digest:
            for line in outcome.trace:
                click.echo(line)
            click.echo(f"seed {seed}: {outcome.failure or 'good'}, {outcome.replies} replies, digest ", nl=False)
        click.echo(outcome.digest)
    return failed


@click.command()
@click.argument("seed", type=int, required=False)
@click.option("--seeds", type=int, default=0, help="Run so many seeds.")
@click.option("--first", type=int, default=None, help="The first of them; by default one that was not run before.")
@click.option("--processes", type=int, default=os.cpu_count() or 1, help="At the same time.")
@click.option("--stop", is_flag=True, help="Stop at the first that fails.")
@click.option("--digest", is_flag=True, help="Of SEED, and of --seeds from it on, print the digests alone.")
@click.option("--mutant", type=click.Choice(sorted(MUTANTS)), help="Change the code under test first.")
def main(
    *, seed: int | None, seeds: int, first: int | None, processes: int, stop: bool, digest: bool, mutant: str | None
) -> None:
    """Runs the simulation; exits with 1 if a seed fails."""
    if mutant is not None:
        apply(MUTANTS[mutant])
    if seed is not None:
        sys.exit(show(range(seed, seed + max(seeds, 1)), digest=digest))
    began, failed = time.monotonic(), 0
    start = first if first is not None else random.SystemRandom().randrange(10**9)
    for number, failure in run_many(range(start, start + seeds), processes, stop=stop):
        failed += 1
        click.echo(f"seed {number}: {failure}")
    click.echo(f"{seeds} seeds from {start}: {failed} failed, {time.monotonic() - began:.0f} s")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
