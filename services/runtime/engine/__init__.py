"""Many sequences, one run of the model: scheduler, collation, batcher."""
