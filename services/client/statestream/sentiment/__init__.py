"""Generated from `protos/statestream/sentiment`: messages, and stubs of the services."""
