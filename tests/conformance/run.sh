#!/bin/sh
# Runs critest against a daemon of its own, in a network namespace of its own, with substitute images from a registry of
# its own (images.py). Everything is removed at the end.
#
#   run.sh CRITEST [critest's options, such as -ginkgo.focus=Networking]
#
# CRITEST is the suite's binary; it is not part of this repository. From a checkout of kubernetes-sigs/cri-tools:
#   make critest
#
# BERTH_BIN_DIR  where berthd and berth-shim are   (target/debug of this repository)
# NAME           prefix of all that is made        (berth-conf)
# REPORT         file for a JUnit report, of which report.py makes docs/conformance.md
# LOG            file for the daemon's log
# IMAGES         directory with the registry's content as PREPARE left it: for machines without python and apt
# PREPARE        directory to fill so; then nothing else is done, and CRITEST may be anything
# KEEP=1         leaves the namespace, registry and daemon running, and says how to reach them
set -eu

[ $# -ge 1 ] || { sed -n '2,18s/^# \{0,1\}//p' "$0" >&2; exit 2; }
critest=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
bin=${BERTH_BIN_DIR:-$here/../../target/debug}
name=${NAME:-berth-conf}
root=$(mktemp -d "/var/tmp/$name.XXXXXX")
state=/run/$name
registry=127.0.0.1:5577
socket=$state/berth.sock
daemon='' server=''

finish() {
    status=$?
    trap - EXIT INT TERM
    if [ -n "${KEEP:-}" ]; then
        echo "left running: ip netns exec $name crictl -r unix://$socket … (daemon $daemon, registry $server, $root)"
        exit $status
    fi
    if [ -n "$daemon" ]; then
        # Pods that a failed spec left behind.
        for pod in $("$bin/berth" --address "$socket" pods -q 2>/dev/null); do
            "$bin/berth" --address "$socket" rm -f "$pod" >/dev/null 2>&1 || true
        done
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    # A run that was cut off leaves pods' namespaces pinned.
    grep -o " $state/[^ ]*" /proc/self/mounts | sort -r | while read -r point; do umount -l "$point"; done
    ip netns delete "$name" 2>/dev/null || true
    [ -z "${LOG:-}" ] || cp "$root/berthd.log" "$LOG" || true
    rm -rf --one-file-system "$root" "$state"
    for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
        [ ! -d "$hierarchy/$name" ] || find "$hierarchy/$name" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
    exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

ip netns add "$name"
inside() { nsenter --net="/run/netns/$name" "$@"; }
inside ip link set lo up

content=${PREPARE:-${IMAGES:-$root/registry}}
mkdir -p "$content" "$root/certs.d/_default" "$state"
cat >"$root/registry.yml" <<END
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: $content}
http: {addr: $registry}
END
# All registries the suite knows are this one.
cat >"$root/certs.d/_default/hosts.toml" <<END
server = "http://$registry"
[host."http://$registry"]
capabilities = ["pull", "resolve"]
END
cat >"$root/berth.toml" <<END
version = 1
root = "$root/root"
state = "$state"
[grpc]
address = "$socket"
[metrics]
address = ""
[cgroup]
root = "/$name"
[images]
config_path = ["$root/certs.d"]
[network]
table = "$name"
[network.bridge]
name = "bconf0"
subnets = ["10.95.0.0/24"]
[nri]
socket_path = "$state/nri.sock"
plugin_path = "$root/nri"
END
# Other handlers, to be chosen by critest's -runtime-handler.
for runtime in runc crun; do
    [ ! -x "/usr/bin/$runtime" ] || printf '[runtimes.%s]\ntype = "oci"\npath = "/usr/bin/%s"\n' $runtime $runtime
done >>"$root/berth.toml"
shim=/usr/bin/containerd-shim-runc-v2
[ ! -x $shim ] || printf '[runtimes.shim]\ntype = "shim"\npath = "%s"\n' $shim >>"$root/berth.toml"

# Not by the function: the process must be our own child, to be ended.
nsenter --net="/run/netns/$name" docker-registry serve "$root/registry.yml" >"$root/registry.log" 2>&1 &
server=$!
until inside curl -sf "http://$registry/v2/" >/dev/null; do
    kill -0 "$server" || { cat "$root/registry.log" >&2; exit 1; }
    sleep 0.1
done
if [ -z "${IMAGES:-}" ]; then
    # images.py says what for. busybox can't be installed beside busybox-static, but unpacked.
    shell=
    if (cd "$root" && apt-get download -q busybox >/dev/null 2>&1 && dpkg-deb -x busybox_*.deb busybox); then
        shell=$(find "$root/busybox" -path "*/bin/busybox" | head -n 1)
    else
        echo "no busybox package: the spec about masked paths will fail" >&2
    fi
    inside python3 "$here/images.py" "$registry" $shell >/dev/null
fi
[ -z "${PREPARE:-}" ] || exit 0

nsenter --net="/run/netns/$name" "$bin/berthd" --config "$root/berth.toml" >"$root/berthd.log" 2>&1 &
daemon=$!
until [ -S "$socket" ]; do
    kill -0 "$daemon" || { cat "$root/berthd.log" >&2; exit 1; }
    sleep 0.1
done

inside "$critest" -runtime-endpoint "unix://$socket" -nri-socket "$state/nri.sock" -ginkgo.no-color ${REPORT:+"-ginkgo.junit-report=$REPORT"} "$@"
