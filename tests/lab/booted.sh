#!/bin/bash
# booted.sh NAME DIRECTORY CGROUP CHECKOUT: become systemd, as the first process of a machine.
#
# To be run as process 1 of fresh pid, mount, uts and ipc namespaces. DIRECTORY is for scratch, CGROUP is made below
# the root of cgroup2. The machine sees this host's files; what it writes to them, and to CHECKOUT, goes to memory.
# Of this host's configuration of systemd nothing holds; /sys, and sysctls but the network's, are read-only.
set -euo pipefail

name=$1 directory=$2 cgroup=$3 checkout=$4
root=$directory/root layers=$directory/layers
systemd=/lib/systemd/systemd
# Of what static units want to be started at boot.
booted=" systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket "

if [ "${5:-}" != joined ]; then
    # Those of others, who want to be the last to hold them; some go while we look.
    umount --all --lazy --types bpf,nsfs 2>/dev/null || true
    mount -t cgroup2 cgroup2 "$directory/cgroup"
    mkdir "$directory/cgroup/$cgroup"
    echo 0 >"$directory/cgroup/$cgroup/cgroup.procs"
    exec unshare --cgroup "$0" "$@" joined
fi

# over PLACE: a directory of this host's, with a layer of the machine's own above it.
over() {
    local upper=$layers/${1//\//_}
    [ -d "$1" ] || return 0
    mkdir -p "$upper/upper" "$upper/work" "$root$1"
    mount -t overlay -o "lowerdir=$1,upperdir=$upper/upper,workdir=$upper/work" overlay "$root$1"
}

files() {
    local place
    mount --bind / "$root"
    if mountpoint --quiet /usr; then mount --bind /usr "$root/usr"; fi
    mount --make-rprivate "$root"
    mount -t tmpfs tmpfs "$layers"
    for place in etc opt root usr/local var; do
        over "/$place"
    done
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    over "$checkout"
    mount -o remount,bind,ro "$root"
}

kernel() {
    local device
    mount -t proc proc "$root/proc"
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
    mount -o remount,bind,ro "$root/proc/sys"
    mount -t sysfs sysfs "$root/sys"
    mount -o remount,bind,ro "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    mkdir "$root/dev/net" "$root/dev/pts" "$root/dev/shm"
    for device in full net/tun null random tty urandom zero; do
        touch "$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
}

# A machine on which nothing is enabled, and this project not installed.
configuration() {
    local wanted unit
    rm -rf "$root/etc/systemd" "$root/etc/l3dsr" "$root/opt/l3dsr" "$root/usr/local/lib/systemd"
    rm -f "$root"/usr/local/bin/{balancer,packetbridge,l3dsr}
    mkdir -p "$root/etc/systemd/system"
    mount -t tmpfs -o ro tmpfs "$root/usr/lib/systemd/system-generators"
    for wanted in "$root"/usr/lib/systemd/system/{local-fs,sockets,sysinit,timers}.target.wants/*; do
        unit=${wanted##*/}
        if [ -L "$wanted" ] && [[ $booted != *" $unit "* ]]; then
            ln -sf /dev/null "$root/etc/systemd/system/$unit"
        fi
    done
    rm -f "$root/etc/machine-id"
    echo "$name" >"$root/etc/hostname"
    tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
}

files
kernel
configuration
cd "$root"
# Where / is a chroot there is no pivoting; systemd does not mind.
if pivot_root . run 2>/dev/null; then
    umount --lazy /run
    exec env -i container=lab PATH="$PATH" "$systemd" --system --unit=basic.target --log-level=info
fi
exec env -i container=lab PATH="$PATH" chroot . "$systemd" --system --unit=basic.target --log-level=info
