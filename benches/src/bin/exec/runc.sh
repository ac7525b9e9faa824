# Runs inside of the guest: what runc takes there for the same, in microseconds, a word and a number a line.
set -eu
what=$1 count=$2
bundle=/bench

now() { now=${EPOCHREALTIME/[.,]/}; }

# A bundle of the container's own root, without a terminal, for a command in JSON.
bundle() {
    mkdir -p "$bundle/rootfs"
    mountpoint -q "$bundle/rootfs" || mount --bind / "$bundle/rootfs"
    rm -f "$bundle/config.json"
    (cd "$bundle" && runc spec)
    sed -i "s/\"terminal\": true/\"terminal\": false/; s/\"sh\"/$1/" "$bundle/config.json"
}

# Each of the words is a command that is timed as one.
timed() {
    for _ in $(seq "$count"); do
        now; begin=$now
        "$@" </dev/null >/dev/null
        now; echo "$what $((now - begin))"
    done
}

by_three_commands() {
    runc create --bundle "$bundle" one
    runc start one
    runc delete --force one
}

copy() { cp /copied /copied-again; }
pipe() { head -c 268435456 /dev/zero | cat; }

case $what in
exec)
    bundle '"sleep", "1000000"'
    runc run --detach --bundle "$bundle" idle </dev/null >/dev/null
    timed runc exec idle true
    runc delete --force idle
    ;;
run)
    bundle '"true"'
    timed runc run --bundle "$bundle" one
    ;;
create)
    bundle '"true"'
    timed by_three_commands
    ;;
pipe) timed pipe ;;
copy)
    [ -e /copied ] || head -c 67108864 /dev/zero | tr '\0' Z >/copied
    timed copy
    rm -f /copied-again
    ;;
agent) awk '/^VmRSS:/ { print "agent", $2 * 1024 }' /proc/1/status ;;
esac
