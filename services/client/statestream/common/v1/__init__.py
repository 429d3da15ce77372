"""Generated from `protos/statestream/common/v1`: messages, and stubs of the services."""
