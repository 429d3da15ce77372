"""Generated from `protos/statestream/common`: messages, and stubs of the services."""
