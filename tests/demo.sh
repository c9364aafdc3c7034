#!/bin/bash
# The demo: a private registry, a daemon of its own, a web server pod with a published port, and the clean-up.
#
# Everything has a name or path of its own (bridge, table, pool, socket, directories), so that it runs beside an
# installed Berth, Docker or Kubernetes. IMAGE=registry/name:tag pulls that image from its own registry instead of
# the one made here; it must contain a shell for the last step. PORT (18080) is the published port, TARGET (80) the
# port the image serves on.
set -euo pipefail

bin=${BERTH_BIN_DIR:-$(dirname "$0")/../target/release}
image=${IMAGE:-}
port=${PORT:-18080}
target=${TARGET:-80}
registry_port=${REGISTRY_PORT:-15000}
tag=demo-$$
dir=/var/tmp/berth-$tag
run=/run/berth-$tag
pids=()

export BERTH_ADDRESS=$run/berth.sock BERTH_LOG_DIR=$run/logs

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

steps=()
# Runs a step and remembers how long it took.
step() {
    local name=$1 start end
    shift
    say "$name"
    start=$(date +%s%N)
    "$@"
    end=$(date +%s%N)
    steps+=("$(printf '%9.1f ms   %s' "$(( (end - start) / 10000 ))e-2" "$name")")
}

clean_up() {
    local code=$?
    trap - EXIT INT TERM
    set +e
    [ $code = 0 ] || { say "failed; the daemon's last words"; tail -n 30 "$run/berthd.log" 2>/dev/null; }
    if [ -S "$BERTH_ADDRESS" ]; then
        "$bin/berth" rm --force web >/dev/null 2>&1 || true
    fi
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
    done
    # What a daemon that failed could not take away itself. Shims name the state directory in their command line.
    for process in /proc/[0-9]*; do
        if { tr '\0' ' ' <"$process/cmdline"; } 2>/dev/null | grep -q "berth-shim.*$run/"; then
            kill -9 "${process#/proc/}" 2>/dev/null
        fi
    done
    for group in $(find /sys/fs/cgroup -maxdepth 3 -type d -name "berth-$tag" 2>/dev/null); do
        find "$group" -name cgroup.procs -exec cat {} + 2>/dev/null | while read -r pid; do kill -9 "$pid" 2>/dev/null; done
        sleep 0.1
        find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null
    done
    grep -o " $run/[^ ]*\| $dir/[^ ]*" /proc/self/mountinfo | sort -ru | while read -r mount; do umount -l "$mount"; done
    ip link delete "$bridge" 2>/dev/null
    nft delete table inet "$table" 2>/dev/null
    rm -rf "$dir" "$run"
    if [ $code = 0 ]; then
        say "how long each step took"
        printf '%s\n' "${steps[@]}"
        echo
        echo "Everything was removed again: $dir, $run, bridge $bridge, table $table."
    fi
    exit $code
}

bridge=demo$(( $$ % 100000 ))
table=berth_demo_$$
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

[ "$(id -u)" = 0 ] || { echo "the demo makes network namespaces and mounts: run it as root" >&2; exit 1; }
for program in berthd berth berth-shim; do
    [ -x "$bin/$program" ] || { echo "$bin/$program is missing: run 'make release'" >&2; exit 1; }
done
mkdir -p "$dir/image" "$run"

start_registry() {
    cat >"$run/registry.yml" <<YAML
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $dir/registry}}
http: {addr: "127.0.0.1:$registry_port"}
YAML
    docker-registry serve "$run/registry.yml" >"$run/registry.log" 2>&1 &
    pids+=($!)
    for _ in $(seq 100); do
        curl -fs "http://127.0.0.1:$registry_port/v2/" >/dev/null && return
        sleep 0.05
    done
    echo "the registry does not answer:" >&2
    cat "$run/registry.log" >&2
    return 1
}

# An OCI image layout by hand: busybox, a page, a configuration, a manifest; skopeo pushes it.
make_image() {
    local root=$dir/image/root layout=$dir/image/layout blobs architecture busybox
    blobs=$layout/blobs/sha256
    busybox=$(command -v busybox)
    mkdir -p "$root"/{bin,etc,tmp,www} "$blobs"
    cp "$busybox" "$root/bin/busybox"
    "$busybox" --list | while read -r applet; do [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"; done
    echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
    echo '<h1>Moored at Berth.</h1>' >"$root/www/index.html"
    # -v: requests go to standard error, so that the log has something to show.
    tar -C "$root" --sort=name --owner=0 --group=0 --numeric-owner -cf "$dir/image/layer.tar" .
    architecture=$(dpkg --print-architecture)
    put() { local sum; sum=$(sha256sum "$1" | cut -d ' ' -f 1); cp "$1" "$blobs/$sum"; echo "$sum"; }
    local diff_id layer config manifest
    diff_id=$(sha256sum "$dir/image/layer.tar" | cut -d ' ' -f 1)
    gzip -nf "$dir/image/layer.tar"
    layer=$(put "$dir/image/layer.tar.gz")
    cat >"$dir/image/config.json" <<JSON
{"architecture": "$architecture", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:$diff_id"]},
 "config": {"Env": ["PATH=/bin"], "Cmd": ["httpd", "-f", "-vv", "-p", "$target", "-h", "/www"],
 "StopSignal": "SIGKILL"}}
JSON
    config=$(put "$dir/image/config.json")
    size() { stat -c %s "$blobs/$1"; }
    cat >"$dir/image/manifest.json" <<JSON
{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
 "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "sha256:$config", "size": $(size "$config")},
 "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "sha256:$layer", "size": $(size "$layer")}]}
JSON
    manifest=$(put "$dir/image/manifest.json")
    echo '{"imageLayoutVersion": "1.0.0"}' >"$layout/oci-layout"
    cat >"$layout/index.json" <<JSON
{"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
 "digest": "sha256:$manifest", "size": $(size "$manifest"), "annotations": {"org.opencontainers.image.ref.name": "1"}}]}
JSON
    skopeo copy --quiet --dest-tls-verify=false "oci:$layout:1" "docker://$image"
    echo "pushed $image"
}

start_daemon() {
    mkdir -p "$run/certs.d/127.0.0.1:$registry_port"
    echo "server = \"http://127.0.0.1:$registry_port\"" >"$run/certs.d/127.0.0.1:$registry_port/hosts.toml"
    cat >"$run/config.toml" <<TOML
version = 1
root = "$dir/root"
state = "$run/state"

[grpc]
address = "$BERTH_ADDRESS"

[metrics]
address = ""

[cgroup]
driver = "cgroupfs"
root = "/berth-$tag"

[images]
config_path = ["$run/certs.d"]

[network]
mode = "builtin"
table = "$table"

[network.bridge]
name = "$bridge"
subnets = ["10.213.87.0/24", "fd85:be:57::/64"]

[nri]
enable = false
TOML
    "$bin/berthd" --config "$run/config.toml" >"$run/berthd.log" 2>&1 &
    pids+=($!)
    for _ in $(seq 200); do
        "$bin/berth" version >/dev/null 2>&1 && return
        kill -0 "${pids[-1]}" 2>/dev/null || break
        sleep 0.02
    done
    echo "berthd does not answer" >&2
    return 1
}

fetch_page() {
    for _ in $(seq 100); do
        curl -fsS --max-time 3 "http://127.0.0.1:$port/" 2>"$run/curl.log" && return
        sleep 0.02
    done
    cat "$run/curl.log" >&2
    return 1
}

if [ -z "$image" ]; then
    image=127.0.0.1:$registry_port/demo/web:1
    step "a private registry starts" start_registry
    step "an image is made and pushed to it" make_image
fi
step "berthd starts" start_daemon
step "berth pull $image" "$bin/berth" pull "$image"
step "berth run: a web server pod with a published port" \
    "$bin/berth" run -d --name web -p "$port:$target" "$image"
step "curl http://127.0.0.1:$port/" fetch_page
step "berth ps" "$bin/berth" ps
step "berth logs web" "$bin/berth" logs web
step "berth exec web: what it sees of itself" \
    "$bin/berth" exec web sh -c 'echo "host name: $(hostname)"; ip -o addr show dev eth0 2>/dev/null; ps 2>/dev/null'
step "berth stop web" "$bin/berth" stop web
step "berth rm web" "$bin/berth" rm web
