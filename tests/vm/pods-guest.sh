#!/bin/sh
# In the machine: pods in scopes of systemd, which alone makes cgroups below its slices.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
failed=0
say() { echo "test-vm: $*"; }
check() { # WHAT COMMAND...
    what=$1
    shift
    if "$@" >/run/said 2>&1; then
        say "ok: $what ($(cut -d ' ' -f 1 /proc/uptime) s)"
    else
        failed=1
        say "FAILED: $what"
        sed 's/^/    /' /run/said
    fi
}
property() { systemctl show "$1" --property="$2" --value; }
is() { # FOUND WANTED
    echo "found $1, wanted $2"
    [ "$1" = "$2" ]
}
patiently() { # SECONDS COMMAND...
    until=$(($(cut -d . -f 1 /proc/uptime) + $1))
    shift
    until "$@"; do
        [ "$(cut -d . -f 1 /proc/uptime)" -lt "$until" ] || return 1
        sleep 1
    done
}
id_of() { berth inspect --format '{.id}' "$1"; }
no_scopes() { [ -z "$(systemctl list-units --all --no-legend 'cri-berth-*')" ]; }

say "$(systemctl --version | head -n 1), Linux $(uname -r), up since $(cut -d ' ' -f 1 /proc/uptime) s"
depmod
mkdir -p /etc/berth/conf.d
[ ! -e /usr/bin/runc ] || printf '[runtimes.runc]\ntype = "oci"\npath = "/usr/bin/runc"\n' >/etc/berth/conf.d/runc.toml
check "install" /berth/berth node install --mode node --from /berth
check "the daemon answers" berth info
check "the driver is systemd's" sh -c "berth info | grep -i 'cgroup.*systemd'"
check "the image is there" berth import /berth.images/busybox.tar

slice=kubepods-burstable-pod1_2.slice
directory=/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/$slice
check "a pod in a slice of the kubelet's kind" berth run -d --name one --network none --cgroup-parent "$slice" -m 64m --cpus 0.12 \
    test/busybox:1 sleep 100000
id=$(id_of one)
scope=cri-berth-$id.scope
check "its scope is active" is "$(property "$scope" ActiveState)" active
check "it is in the slice" is "$(property "$scope" Slice)" "$slice"
check "it is delegated" is "$(property "$scope" Delegate)" yes
check "systemd knows its memory limit" is "$(property "$scope" MemoryMax)" 67108864
check "systemd knows its share of processors" is "$(property "$scope" CPUQuotaPerSecUSec)" 120ms
check "its process is there alone" is "$(wc -l <"$directory/$scope/cgroup.procs")" 1
limits() {
    is "$(cat "$directory/$scope/memory.max") $(cat "$directory/$scope/cpu.max")" "67108864 12000 100000"
}
check "the limits are in force" limits
check "a command in it" is "$(berth exec one echo yes)" yes
check "its cgroup as it sees it" is "$(berth exec one cat /proc/1/cgroup)" "0::/"
systemctl daemon-reload
check "the limits outlive a reload" limits
check "new properties for the slice" systemctl set-property --runtime "$slice" CPUWeight=50 MemoryMax=256M
check "the limits outlive them" limits
if berth update --help >/dev/null 2>&1; then
    check "new limits" berth update -m 96m one
    check "they are in force" is "$(cat "$directory/$scope/memory.max")" 100663296
    check "systemd knows them" is "$(property "$scope" MemoryMax)" 100663296
    systemctl daemon-reload
    check "they outlive a reload" is "$(cat "$directory/$scope/memory.max")" 100663296
fi
check "statistics" sh -c "berth stats --no-stream one"

check "the daemon restarts" systemctl restart berth
check "and answers" patiently 60 berth info
check "the container runs on" is "$(property "$scope" ActiveState) $(berth exec one echo yes)" "active yes"
check "the container is stopped" berth stop -t 1 one
check "and removed" berth rm one
check "its scope is gone" patiently 20 no_scopes

berth run --name hungry --network none -m 16m test/busybox:1 sh -c 'x=x; while :; do x=$x$x; done' >/dev/null 2>&1
check "one that wants too much memory is killed" is "$(berth inspect --format '{.reason}' hungry)" OOMKilled
check "and leaves no failed scope" patiently 20 no_scopes
check "nor itself" berth rm hungry

if [ -e /usr/bin/runc ]; then
    check "a container of runc" berth run -d --runtime runc --name two --network none -m 64m test/busybox:1 sleep 100000
    scope=cri-berth-$(id_of two).scope
    check "its scope is active" is "$(property "$scope" ActiveState)" active
    check "systemd knows its memory limit" is "$(property "$scope" MemoryMax)" 67108864
    check "a command in it" is "$(berth exec two echo yes)" yes
    check "it is removed" berth rm -f two
    check "its scope is gone" patiently 20 no_scopes
fi

check "twenty at once" sh -c 'for n in $(seq 20); do berth run -d --name "many$n" --network none test/busybox:1 sleep 100000 & done; wait;
    [ "$(systemctl list-units --no-legend "cri-berth-*" | wc -l)" = 20 ]'
check "they are removed" sh -c 'for n in $(seq 20); do berth rm -f "many$n" & done; wait'
check "their scopes are gone" patiently 30 no_scopes
check "their cgroups are gone" sh -c '! find /sys/fs/cgroup -name "cri-berth-*" | grep .'
say "up for $(cut -d ' ' -f 1 /proc/uptime) s"
say "exit status $failed"
sync
systemctl poweroff --force --force
