"""Messages of inference/infer.proto; their types are in the stub beside this, which `make gen` writes."""

from services.inference.wire.pool import publish

publish("inference/infer.proto", globals())
