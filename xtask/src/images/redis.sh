#!/bin/sh
# Where redis is to serve as root, it serves as its own user, who owns the directory of its data.
set -e
if [ "$1" = redis-server ] && [ "$(id -u)" = 0 ]; then
    chown redis:redis .
    exec setpriv --reuid=redis --regid=redis --init-groups "$0" "$@"
fi
exec "$@"
