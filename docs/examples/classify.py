"""Whole texts, blocking: `python docs/examples/classify.py [host:port]`."""

import sys

from statestream import Client, errors

TEXTS = ["A warm, clever comedy.", "Two hours of noise without one idea."]


def main(address: str) -> None:
    """Classifies some texts in one call, then shows what a refusal looks like."""
    with Client(address, timeout_s=5.0) as client:
        for text, result in zip(TEXTS, client.sentiment.classify(TEXTS), strict=True):
            print(f"{result.label} ({result.positive_probability:.2f}): {text}")
        try:
            client.sentiment.classify(["fine", ""])
        except errors.InvalidInput as error:
            print(f"refused, {error.reason} in {error.field}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
