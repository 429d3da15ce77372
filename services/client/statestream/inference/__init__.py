"""Generated from `protos/statestream/inference`: messages, and stubs of the services."""
