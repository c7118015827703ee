#!/bin/sh
# PID 1 of the guest: mounts, modules, the command, its status, power off.
# PYC_JOB is a directory on the host that is bound in as /run/job: `command`, `checkout`, `status`.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null || mount -t tmpfs -o mode=755 tmpfs /dev
test -c /dev/null || { mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/zero c 1 5; mknod -m 666 /dev/full c 1 7
  mknod -m 666 /dev/random c 1 8; mknod -m 666 /dev/urandom c 1 9; mknod -m 666 /dev/tty c 5 0; }
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
test -e /dev/ptmx || ln -s pts/ptmx /dev/ptmx
ln -sf /proc/self/fd /dev/fd
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/job
job=$(sed 's/.*PYC_JOB=\([^ ]*\).*/\1/' /proc/cmdline)
mount -t hostfs -o "$job" hostfs /run/job
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# A checkout below /tmp lies under the tmpfs by now: show it again.
checkout=$(cat /run/job/checkout)
test -d "$checkout" || { mkdir -p "$checkout" && mount -t hostfs -o "$checkout" hostfs "$checkout"; }
mkdir -p /run/kernel/lib
ln -s /usr/lib/uml/modules /run/kernel/lib/modules
for module in overlay veth bridge nf_tables sch_netem; do
  modprobe -d /run/kernel -q "$module" 2>/dev/null ||
    find /usr/lib/uml/modules -name "$module.ko*" -exec insmod {} \; 2>/dev/null
done
ip link set lo up 2>/dev/null
export HOME=/run/home PYCONTAIN_ROOT=/run/store
mkdir -m 777 -p "$HOME"
cd /run/home || exit 1
sh /run/job/command < /dev/null
echo $? > /run/job/status
sync
exec busybox poweroff -f
