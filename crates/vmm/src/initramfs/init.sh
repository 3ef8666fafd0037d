#!/bin/busybox sh
# The guest's init: bring up the share, assemble the container's root, run one command in it, power off.
#
# What it is for comes by the control port once it waits for that: shell that sets the NB_ variables and defines nb_shares
# and nb_command; see params.rs. Until then all machines are the same, and one may be saved there and go on as many, much
# later. What is looked up in the container is in container.sh.
# Events go to the host as lines on the control port; event.rs reads them. The host answers with one line when it
# has everything, and closes the port when it is gone: either way the machine is then switched off.
#
# Under emulation a process takes 6 ms, and there are two processors: what the ports don't need is done beside them, and
# what the shell can do itself, it does.

export PATH=/bin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs devtmpfs /dev
{
    /bin/busybox --install -s /bin
    mkdir -p /dev/pts /dev/shm
    mount -t devpts -o ptmxmode=0666,gid=5,mode=0620 devpts /dev/pts
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    mount -t tmpfs -o mode=0755 tmpfs /run
    mount -t tmpfs -o mode=1777 tmpfs /tmp
    # devtmpfs has none of these, and shells and languages expect them.
    ln -s /proc/self/fd /dev/fd
    ln -s fd/0 /dev/stdin
    ln -s fd/1 /dev/stdout
    ln -s fd/2 /dev/stderr
    ifconfig lo 127.0.0.1 2>/dev/null
    # Kata's place for the share.
    mkdir -p /run/kata-containers/shared
} &
places=$!
/bin/busybox mount -t sysfs sysfs /sys
. /container.sh

power_off() {
    /bin/busybox sync
    /bin/busybox poweroff -f
}

# The host is gone, and its daemon may be, too: then what waits for the share, as a sync does, waits for ever.
host_gone() {
    {
        /bin/busybox sync
        : >/tmp/synced
    } &
    tries=0
    until [ -e /tmp/synced ] || [ "$tries" -ge 50 ]; do
        tries=$((tries + 1))
        /bin/busybox usleep 100000
    done
    /bin/busybox poweroff -n -f
}

# Without a control port nobody can be told but the console's reader.
without_control() {
    echo "init: $*" >/dev/console
    power_off
}

# Loads the modules that the file $1 lists.
load() {
    while read -r module; do
        /bin/busybox insmod "/modules/$module" || return 1
    done <"$1"
}
load /modules/ports || without_control "cannot load $module"
{
    load /modules/others || {
        echo "$module" >/modules/failed
        false
    }
} &
others=$!

# Finds the devices of the virtio ports: those whose names begin with nydusbox., as variables.
ports() {
    stdin= stdout= stderr= control=
    for name in /sys/class/virtio-ports/*/name; do
        port=${name%/name}
        port=/dev/${port##*/}
        read -r name 2>/dev/null <"$name" || continue
        case $name in
        nydusbox.stdin) stdin=$port ;;
        nydusbox.stdout) stdout=$port ;;
        nydusbox.stderr) stderr=$port ;;
        nydusbox.control) control=$port ;;
        esac
    done
    [ -c "$stdin" ] && [ -c "$stdout" ] && [ -c "$stderr" ] && [ -c "$control" ]
}

# The driver adds ports from a work queue, and names them one after the other: some may appear a moment after it has
# loaded, even while it is looked for them. Control is the last one: when it is open for the host, the others are too
# (their messages share one queue), and a read of stdin can't be mistaken for its end.
tries=0
until ports; do
    tries=$((tries + 1))
    [ "$tries" -lt 500 ] || without_control "not all ports after 5 s"
    /bin/busybox usleep 10000
done
exec 3<"$stdin" 4>"$stdout" 5>"$stderr" 6<>"$control"

# Waits while nobody has the port open at the host.
event() {
    printf '%s\n' "$*" >&6
}

# Ends the boot: no command ran. $1 is the step, the rest says why, on one line.
watcher=
fail() {
    step=$1
    shift
    event error "$step" "$(echo "$*" | tr '\n' ' ')" &
    [ -z "$watcher" ] || wait "$watcher"
    read -r answer <&6 || host_gone
    power_off
}

wait "$places"
wait "$others" || fail modules "cannot load $(cat /modules/failed)"
event waiting &
# If the host goes away instead, so does the machine. While it is stopped to be saved, QEMU does not tell it that: so a
# word has to come soon, and only then it may wait for as long as it takes.
read -t 30 -r word <&6 || host_gone
read -r length <&6 || host_gone
head -c "$length" <&6 >/params
. /params
# From now on as well: whatever else waits for the host.
(read -r answer <&6 || host_gone; power_off) &
watcher=$!
event ready

# The clock is that of when the machine was saved. Only whole seconds can be set: so once for the command not to wait, and
# then exactly, when the next one begins, if that is far enough away not to set it back.
{
    date -s "@$NB_NOW" >/dev/null
    : >/tmp/clock
} &
clock=$!
[ -z "$NB_NEXT_SECOND_IN_US" ] || {
    /bin/busybox usleep "$NB_NEXT_SECOND_IN_US"
    until [ -e /tmp/clock ]; do
        /bin/busybox usleep 1000
    done
    date -s "@$((NB_NOW + 1))" >/dev/null
} &

# Runs a command of step $1, whose own message explains a failure. The last kernel messages go with it: mount(2) says
# no more than "invalid argument", the file system says which one and why.
try() {
    step=$1
    shift
    message=$("$@" 2>&1) || fail "$step" "$message; kernel:" "$(dmesg | tail -n 2)"
}

# Sets at to where the container's path $2 is for us; $1 is the step.
locate() {
    inside "$2" || fail "$1" "too many symbolic links in $2"
}

# The share's device has been plugged in, which the kernel need not have noticed yet; or not at all, if it leaves that to
# a driver it doesn't have.
echo 1 >/sys/bus/pci/rescan
[ -d "$NB_SHARE" ] || try share mkdir -p "$NB_SHARE"
try share mount -t virtiofs "$NB_TAG" "$NB_SHARE"
event share-mounted

# Kata's place for the root is inside the share; a daemon that refuses it leaves the guest's own memory.
if ! mkdir -p "$NB_ROOT" 2>/dev/null || ! [ -d "$NB_ROOT" ]; then
    NB_ROOT=/run/nydusbox/rootfs
    try rootfs mkdir -p "$NB_ROOT"
fi
[ -d "$NB_LOWER" ] || fail rootfs "the share has no directory $NB_LOWER"
if [ "$NB_UPPER_IN" = memory ]; then
    try rootfs mkdir -p /run/nydusbox/upper
    try rootfs mount -t tmpfs -o mode=0755 tmpfs /run/nydusbox/upper
fi
try rootfs mkdir -p "$NB_UPPER" "$NB_WORK"
# A daemon without CAP_SYS_ADMIN can't store trusted.* attributes; overlayfs then does with user.* ones if it is told.
mount -t overlay -o "$NB_OVERLAY" overlay "$NB_ROOT" 2>/dev/null ||
    try rootfs mount -t overlay -o "$NB_OVERLAY,userxattr" overlay "$NB_ROOT"
# The container's root is the upper directory, which knows nothing of the image's. Whoever may not give it away leaves
# it as it is.
is_empty() {
    for entry in "$1"/* "$1"/.[!.]* "$1"/..?*; do
        ! [ -e "$entry" ] && ! [ -L "$entry" ] || return 1
    done
}
if is_empty "$NB_UPPER"; then
    # On two lines: of the image, and of what is there.
    owners=$(stat -c '%u:%g %a' "$NB_LOWER" "$NB_ROOT")
    of_image=${owners%%
*}
    if [ "$owners" != "$of_image
$of_image" ]; then
        chown "${of_image% *}" "$NB_ROOT" 2>/dev/null
        chmod "${of_image#* }" "$NB_ROOT"
    fi
fi

# Mounts on the container's directory $1; the rest is for mount.
on() {
    locate rootfs "$1"
    shift
    [ -d "$at" ] || try rootfs mkdir -p "$at"
    try rootfs mount "$@" "$at"
}
# nb_command mounts that of the command's own processes over it.
on /proc -t proc -o nosuid,noexec,nodev proc
proc=$at
on /sys -t sysfs -o nosuid,noexec,nodev sysfs
on /dev -o rbind /dev
# What else a container has is the image's, /run too: nothing of it is hidden, and what is written there is kept.
locate rootfs /tmp
[ -e "$at" ] || try rootfs mkdir -p -m 1777 "$at"
# In a file of ours, so that neither the image's nor what is kept has more of it than the place. What is there and is no
# file, or cannot be made, stays as it is.
if inside /etc/hosts; then
    hosts "$at" "$NB_HOSTNAME" >/run/hosts
    [ -e "$at" ] || { mkdir -p "${at%/*}" && touch "$at"; } 2>/dev/null
fi
event rootfs-mounted

# Shows the directory $1 of the share at $2 in the container; $3 is ro or rw.
nb_share() {
    [ -d "$NB_SHARE$1" ] || fail shares "the share has no directory $1"
    locate shares "$2"
    [ -d "$at" ] || try shares mkdir -p "$at"
    try shares mount -o bind "$NB_SHARE$1" "$at"
    if [ "$3" = ro ]; then
        try shares mount -o remount,bind,ro "$at"
    fi
}
nb_shares
# Over what a share may have put there; nothing is made in one.
if inside /etc/hosts && [ -f "$at" ]; then
    try rootfs mount -o bind /run/hosts "$at"
fi

echo "$NB_HOSTNAME" >/proc/sys/kernel/hostname
# As under a runtime, users who are not root listen on any port, and ping.
echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start
echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range
locate workdir "$NB_WORKDIR"
[ -d "$at" ] || try workdir mkdir -p "$at"
workdir=$at
[ -e /proc/self/ns/pid ] || fail rootfs "the guest's kernel has no PID namespaces"
find_program "$NB_PROGRAM" "$NB_PATH" "$NB_WORKDIR"
find_user "$NB_USER" "$NB_GROUP" || fail user "$missing"
# No applet sets supplementary groups, a group and a user by number. But `su` sets what our own files say of nb: a
# user 0 with the command's groups, who may still enter the root, and `nsenter` then sets the user.
echo "nb:x:0:$gid::/:" >/etc/passwd
for number in $groups; do
    echo "g$number:x:$number:nb"
done >/etc/group

# The command gets pipes, not the ports: a port can be opened once only, and /dev/stderr opens it again. So may a
# command that isn't root.
mkfifo -m 0666 /run/stdin /run/stdout /run/stderr
cat <&3 >/run/stdin &
feeder=$!
cat </run/stdout >&4 &
out=$!
cat </run/stderr >&5 &
err=$!
wait "$clock"
event command-started
# As many open files as a runtime permits; the kernel's own limit is 4096. As there, nobody has them unasked: what closes
# all that it could have open would take a while.
(ulimit -Hn 1048576; nb_command 3<&- 4>&- 5>&- 6>&-) </run/stdin >/run/stdout 2>/run/stderr
code=$?

# With the command, its namespace's process 1, whatever it left behind has ended: nobody holds the pipes any longer. The
# two that carry output must live until they are empty.
kill -9 "$feeder" 2>/dev/null
wait "$out" "$err"
# FUSE writes a file back when it is closed; unmounting also covers mappings that outlived their descriptor. What
# stays busy is the guest's own. Only then may the host be told that the command is over.
umount -a 2>/dev/null
sync
printf '%s' "$NB_MARKER" >&4
printf '%s' "$NB_MARKER" >&5
event exit "$code"
wait "$watcher"
