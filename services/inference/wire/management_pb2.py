"""Messages of inference/management.proto; their types are in the stub beside this, which `make gen` writes."""

from services.inference.wire.pool import publish

publish("inference/management.proto", globals())
