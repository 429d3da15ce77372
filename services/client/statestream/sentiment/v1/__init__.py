"""Generated from `protos/statestream/sentiment/v1`: messages, and stubs of the services."""
