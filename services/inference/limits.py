"""Bounds on what one request, or one stream, may ask of the inference service. docs/inference.md states them too."""

ROWS_MAX = 64
"""Rows of one request without a sequence: `max_batch_size` in a model's configuration."""

ROWS_AT_ONCE = 16
"""Rows of one request that are in the queue of the model at a time, so that it does not crowd out streams."""

IN_PROGRESS_MAX = 256
"""Requests of one stream that are read and not answered; more stay where they are, with the client."""

SEQUENCES_MAX = 1024
"""Sequences that one stream remembers; the one that was idle longest gives way."""

LAYOUTS_MAX = 1024
"""Forms of requests (names, types, shapes) whose meaning is remembered."""
