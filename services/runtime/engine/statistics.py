"""How much one version of a model was used since it was loaded: counted once a run, not once a step."""

from __future__ import annotations


class Total:
    """A number of events, and the seconds that they took together."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0

    def add(self, count: int, seconds: float) -> None:
        """Counts `count` more events, which took `seconds` together."""
        self.count += count
        self.seconds += seconds


class RunStatistics:
    """What a batcher's runs add up to. A row is one step of one sequence, or a part of a whole input.

    Attributes:
        succeeded: rows that were run, from their arrival in the queue on.
        failed: rows that failed, or whose deadline passed before their run.
        queued: how long the rows waited.
        computed: rows, each with the time of its run.
        runs: by their number of rows.
        last_at: when the latest run ended, seconds since 1970; 0: never.
    """

    def __init__(self) -> None:
        self.succeeded = Total()
        self.failed = Total()
        self.queued = Total()
        self.computed = Total()
        self.runs: dict[int, Total] = {}  # bounded by the batch size
        self.last_at = 0.0

    def ran(self, rows: int, failures: int, queue_s: float, run_s: float, now: float) -> None:
        """A run of `rows` took `run_s` after they had waited `queue_s` together."""
        whole_s = queue_s + rows * run_s
        self.succeeded.add(rows - failures, whole_s * (rows - failures) / rows)
        if failures:
            self.failed.add(failures, whole_s * failures / rows)
        self.queued.add(rows, queue_s)
        self.computed.add(rows, rows * run_s)
        total = self.runs.get(rows)
        if total is None:
            total = self.runs[rows] = Total()
        total.add(1, run_s)
        self.last_at = now
