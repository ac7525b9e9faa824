# What installing packages changed below $1 since the file .base was made there, as the archive tmp/changes.tar: the
# layer of a program. Every entry comes with its parents, else the layer could not be stacked. What a deletion leaves is
# not in it: packages are only added. What apt and mmdebstrap need while they work stays out, and so does what only an
# administrator reads.
set -eu
cd "$1"
find . -xdev \( \
    -path ./.base -o -path ./dev -o -path ./proc -o -path ./sys -o -path ./tmp -o -path ./run/adduser \
    -o -path ./etc/apt -o -path ./etc/dpkg/dpkg.cfg.d/99mmdebstrap -o -path ./etc/hostname -o -path ./etc/resolv.conf -o -path './etc/rc?.d' \
    -o -path ./var/cache/apt -o -path ./var/cache/debconf -o -path ./var/lib/apt -o -path './var/lib/dpkg/*-old' \
    -o -path ./var/log/alternatives.log -o -path ./var/log/apt -o -path ./var/log/dpkg.log \
    -o -path './usr/sbin/start-stop-daemon*' -o -path ./usr/sbin/policy-rc.d \
    \) -prune -o -cnewer .base -print |
    awk -F/ '{ path = "."; for (i = 2; i <= NF; i++) { path = path "/" $i; if (!seen[path]++) print path } }' |
    tar --create --file tmp/changes.tar --numeric-owner --xattrs '--xattrs-include=*' --no-recursion --files-from=-
