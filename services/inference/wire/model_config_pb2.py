"""Messages of inference/model_config.proto; their types are in the stub beside this, which `make gen` writes."""

from services.inference.wire.pool import publish

publish("inference/model_config.proto", globals())
