#!/bin/sh
# Runs as root in the guest, whose kernel has every controller in cgroup v2. Prints sections: `== NAME`, what a
# command said, `-- STATUS`. What they should be is known to vm_supervisor.rs.

export NYDUSBOX_STATE_DIR=/run/nydusbox
cgroups=/sys/fs/cgroup

say() {
    echo "== $1"
    shift
    "$@" 2>&1
    echo "-- $?"
}

# What is left of sandbox $1.
left() {
    for path in "$cgroups/nydusbox-$1".* "$NYDUSBOX_STATE_DIR/$1"; do
        [ ! -e "$path" ] || echo "$path"
    done
}

# In a network namespace of its own, which the supervisor stays in; sets $supervisor and $daemon.
start_elsewhere() {
    say "$1" unshare -n nydusbox start "$@" --share /run/share --require-limits --json | tee "/run/$1.json"
    pids=$(awk '/"pid"/ { gsub(/[^0-9]/, ""); print }' "/run/$1.json")
    supervisor=${pids%%[!0-9]*}
    daemon=${pids##*[!0-9]}
    leaf=$(echo "$cgroups/nydusbox-$1".*)
}

namespaces() {
    for pid in "$supervisor" "$daemon" 1; do
        readlink "/proc/$pid/ns/net"
    done
}

kill_supervisor() {
    kill -9 "$supervisor"
    # Nobody reaps it here. Before it is a zombie it may still hold its locks.
    while grep -q '^State:.[^Z]' "/proc/$supervisor/status" 2>/dev/null; do
        usleep 200000
    done
}

# What the daemon has already is more than this, so that the kernel kills it. Returns when another one serves in its
# place: the name that VMMs know is given last.
use_up_memory() {
    before=$(cat "$leaf/cgroup.procs")
    echo 512K >"$leaf/memory.max"
    until [ -S "$NYDUSBOX_STATE_DIR/$1/vhost.sock" ] &&
        after=$(cat "$leaf/cgroup.procs" 2>/dev/null) && [ -n "$after" ] && [ "$after" != "$before" ]; do
        usleep 200000
    done
}

# Events, once there have been so many recoveries.
events() {
    until nydusbox events "$1" --json >"/run/$1.events" && [ "$(grep -c recovered "/run/$1.events")" = "$2" ]; do
        usleep 200000
    done
    cat "/run/$1.events"
}

# A process of its own that has more children than its cgroup allows.
fork() (
    echo 0 >"$leaf/cgroup.procs"
    children=0
    while [ "$children" -lt 40 ]; do
        sleep 1000 &
        children=$((children + 1))
    done
)

too_small() {
    say small nydusbox start small --share /run/share --memory-max 1M --require-limits
    say small-left left small
}

swept() {
    start_elsewhere s1 --netns host --memory-max 64M --pids-max 40
    say s1-namespaces namespaces
    say s1-limits cat "$leaf/memory.max" "$leaf/pids.max" "$leaf/cgroup.procs"
    say s1-fork fork
    kill_supervisor
    say s1-swept nydusbox sweep
    say s1-left left s1
}

stopped() {
    start_elsewhere s2 --netns current --memory-max 64M --on-exit restart
    say s2-namespaces namespaces
    use_up_memory s2
    say s2-events events s2 1
    say s2-limits cat "$leaf/memory.max"
    kill_supervisor
    say s2-adopted nydusbox adopt s2
    use_up_memory s2
    say s2-adopted-events events s2 1
    say s2-stopped nydusbox stop s2
    say s2-left left s2
}

mount -t cgroup2 cgroup2 "$cgroups"
# As on a host.
mkdir -p /run
mount -t tmpfs tmpfs /run
mkdir /run/share
for group in too_small swept stopped; do
    "$group" >"/run/$group" 2>&1 &
done
wait
cd /run && cat too_small swept stopped
