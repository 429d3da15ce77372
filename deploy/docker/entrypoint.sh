#!/bin/sh
# Starts the service that the image was built for. A setting may come from a file, so that a secret stands neither in
# the compose file nor in what `docker inspect` shows: STATESTREAM_REDIS_URL_FILE=/run/... sets STATESTREAM_REDIS_URL.
set -eu

for name in $(env | sed -n 's/^\(STATESTREAM_[A-Z0-9_]*\)_FILE=.*/\1/p'); do
  eval "file=\$${name}_FILE"
  if [ ! -r "$file" ]; then
    echo "entrypoint: ${name}_FILE: cannot read $file" >&2
    exit 1
  fi
  value=$(cat "$file")
  export "$name=$value"
  unset "${name}_FILE"
done

exec python -m "services.$SERVICE" "$@"
