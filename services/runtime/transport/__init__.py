"""gRPC: gate, streams, statuses, drain."""
