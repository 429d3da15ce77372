"""Generated from `protos/statestream/inference/v1`: messages, and stubs of the services."""
