"""The same contract without our client, as any language would use it: `python docs/examples/plain_grpc.py [host:port]`.

Numbered steps and a start key are all that a client needs to repeat a step safely: whatever was sent may be sent again.
"""

import sys
import uuid
from collections.abc import Iterator

import grpc
from statestream.common.v1.sequence_pb2 import SequenceConfig, StepControl
from statestream.sentiment.v1.sentiment_pb2 import Label, StreamingClassifyRequest, TextPiece
from statestream.sentiment.v1.sentiment_service_pb2_grpc import SentimentServiceStub


def requests(sequence_id: str, start_key: str) -> Iterator[StreamingClassifyRequest]:
    """The configuration first, then numbered pieces; the last one ends the sequence."""
    yield StreamingClassifyRequest(config=SequenceConfig(sequence_id=sequence_id, start=True, start_key=start_key))
    yield StreamingClassifyRequest(piece=TextPiece(control=StepControl(step=0), text="I laughed until "))
    yield StreamingClassifyRequest(piece=TextPiece(control=StepControl(step=1, end=True), text="it hurt."))


def main(address: str) -> None:
    """Sends the whole stream twice; the second time every reply is the stored one."""
    sequence_id, start_key = f"example-{uuid.uuid4().hex}", uuid.uuid4().hex
    with grpc.insecure_channel(address) as channel:
        stub = SentimentServiceStub(channel)
        first = list(stub.StreamingClassify(requests(sequence_id, start_key), timeout=10))
        again = list(stub.StreamingClassify(requests(sequence_id, start_key), timeout=10))
    for reply in first:
        print(f"step {reply.header.step}: {Label.Name(reply.sentiment.label)}, final: {reply.final}")
    print(f"sent again, the same replies: {again == first}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
