#!/bin/sh
# Makes what has to be secret once, in the folder $1: the key that signs exported sequences, an access list for Redis
# with hashes of the passwords, and for each user a file with the password in the form that the user reads. A second run
# adds what an earlier release did not make, and changes nothing.
set -eu
umask 022 # the folder is a volume; who may read it is decided by who mounts it
folder=$1

random() { head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n'; }
digest() { printf %s "$1" | sha256sum | cut -d ' ' -f 1; }

[ -s "$folder/snapshot_key" ] || random > "$folder/snapshot_key"
if [ -s "$folder/complete" ]; then
  echo 'credentials: there already'
  exit 0
fi

services=$(random)
exporter=$(random)

# The services use data and functions; what administers the server or lists keys is left out. The exporter only looks.
# Nobody can log in as the default user, but it keeps its rights: Redis 7.0 reads its append-only file as that user, and
# without them would skip every transaction in it, which is to say forget every sequence, and start all the same.
printf '%s\n' \
  'user default off ~* &* +@all' \
  "user statestream on #$(digest "$services") ~* &* +@all -@admin -@dangerous +info" \
  "user exporter on #$(digest "$exporter") +ping +info +config|get +latency +slowlog +client|setname" \
  > "$folder/users.acl"
printf 'redis://statestream:%s@redis:6379/0' "$services" > "$folder/redis_url"
printf %s "$services" > "$folder/redis_password"
# Versions of the exporter differ in whether they look the password up with the user's name or without.
printf '{"redis://redis:6379": "%s", "redis://exporter@redis:6379": "%s"}' "$exporter" "$exporter" \
  > "$folder/exporter.json"
date > "$folder/complete"
echo 'credentials: made'
