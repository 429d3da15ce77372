"""The blocking client: the asyncio client, waited for (`_portal.py` says why)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from statestream._client import TIMEOUT_S, AsyncClient
from statestream._inference import InferencePart
from statestream._portal import Portal
from statestream._sentiment import SentimentPart
from statestream._sequences import Sequences

if TYPE_CHECKING:
    from types import TracebackType

    import grpc

    from statestream._replay import ReplayBounds
    from statestream._retry import RetryPolicy, Timing


class Client:
    """A Statestream server, for blocking code; may be used from many threads at once.

        with Client("127.0.0.1:50051") as client:
            [result] = client.sentiment.classify(["What a film."])

    The arguments are those of `AsyncClient`.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
        retry: RetryPolicy | None = None,
        replay: ReplayBounds | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._inner = AsyncClient(
            address, timeout_s=timeout_s, credentials=credentials, retry=retry, replay=replay, timing=timing
        )
        self._portal = Portal()
        self.sequences = Sequences(self._portal, self._inner.sequences)
        # One line for each task.
        self.inference = InferencePart(self._portal, self._inner.inference)
        self.sentiment = SentimentPart(self._portal, self._inner.sentiment)

    def ready(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """As `AsyncClient.ready`."""
        return self._portal.run(self._inner.ready(service, timeout_s=timeout_s))

    def wait_ready(self, service: str = "", *, timeout_s: float | None = None) -> None:
        """As `AsyncClient.wait_ready`."""
        self._portal.run(self._inner.wait_ready(service, timeout_s=timeout_s))

    def close(self) -> None:
        """Ends the calls in progress and disconnects; closing twice does nothing."""
        if not self._portal.closed:
            self._portal.run(self._inner.close())
            self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
