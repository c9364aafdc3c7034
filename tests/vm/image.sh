#!/bin/sh
# Makes the machine's memory image: Berth's programs, the test programs, what they call, and kernel modules.
#
#   image.sh IMAGE KERNEL PROGRAM...    programs lie in the directory of a cargo profile, or in its deps/
#
# BERTH_BIN_DIR    directory with Berth's programs (that of the profile)
# APPARMOR         directory with apparmor_parser and apparmor.d/ (apparmor.sh)
# POLICY, SELINUX  binary SELinux policy (selinux.sh), and whether it is only `permissive`
# CRITEST, IMAGES  the conformance suite and its registry's content: instead of test programs, berthd alone is named
set -eu
image=$1 kernel=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
root=$image.d
rm -rf "$root"
cd "$here"

## === directories ===

mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib" "$root/usr/lib64" "$root/etc" "$root/berth" \
    "$root/tests" "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/root" \
    "$root/var/tmp" "$root/var/lib" "$root/new"
for directory in bin sbin lib lib64; do
    ln -s "usr/$directory" "$root/$directory"
done
ln -s ../run "$root/var/run"
chmod 1777 "$root/tmp" "$root/var/tmp"

## === programs ===

# A file where it is here, with the libraries that it is linked to.
add() {
    for file; do
        mkdir -p "$root$(dirname "$file")"
        cp -Lp "$file" "$root$file"
        ldd "$file" 2>/dev/null | sed -n 's|.*[[:space:]]\(/[^ ]*\) (0x.*|\1|p' | while read -r library; do
            [ -e "$root$library" ] || { mkdir -p "$root$(dirname "$library")" && cp -L "$library" "$root$library"; }
        done
    done
}

# A program by its name, wherever it is.
program() {
    for name; do
        path=$(PATH=/usr/sbin:/usr/bin:/sbin:/bin command -v "$name") || {
            echo "$name is missing here (tests/setup.sh peers)" >&2
            exit 1
        }
        add "$path"
    done
}

program docker-registry etcd etcdctl runc crun containerd ctr containerd-shim-runc-v2 nft ip conntrack skopeo openssl unshare setpriv nsenter bridge tc wg
add /usr/lib/cni/bridge /usr/lib/cni/host-local /usr/lib/cni/portmap /usr/lib/cni/bandwidth /usr/lib/cni/loopback
# criu comes with all that it needs (tests/setup.sh criu).
if [ -x ../../target/criu/criu ]; then
    mkdir -p "$root/usr/lib/criu"
    cp -R ../../target/criu/. "$root/usr/lib/criu/"
    ln -s ../lib/criu/criu "$root/usr/sbin/criu"
fi
# Debug information is of no use there, and large.
stripped() { # SOURCE TARGET
    add "$1" && rm "$root$1"
    strip --strip-debug -o "$root$2" "$1"
}
profile=$(dirname "$1")
[ "$(basename "$profile")" != deps ] || profile=$(dirname "$profile")
berth=${BERTH_BIN_DIR:-$profile}
for name in berthd berth berth-shim berth-cni; do
    stripped "$berth/$name" "/berth/$name"
done
if [ -z "${CRITEST:-}" ]; then
    for path; do
        stripped "$path" "/tests/$(basename "$path")"
    done
else
    mkdir -p "$root/conformance"
    strip -o "$root/conformance/critest" "$CRITEST"
    cp ../conformance/run.sh "$root/conformance/"
    cp -R "$IMAGES" "$root/conformance/images"
    # Busybox has its own of these, which can less; its shell would prefer them.
    program dash curl rm ipcmk ipcrm ipcs
    # Asks for nothing: root is who runs it.
    printf '#!/bin/sh\nexec "$@"\n' >"$root/usr/bin/sudo"
    chmod 0755 "$root/usr/bin/sudo"
fi
for directory in "$profile" "$berth"; do
    find "$root" -depth -type d -path "$root${directory%/*}*" -empty -delete
done

if [ -n "${APPARMOR:-}" ]; then
    add "$APPARMOR/apparmor_parser"
    mv "$root$APPARMOR/apparmor_parser" "$root/usr/sbin/"
    mkdir -p "$root/etc/apparmor" && : >"$root/etc/apparmor/parser.conf"
    cp -R "$APPARMOR/apparmor.d" "$root/etc/"
    (cd "$root" && rmdir -p --ignore-fail-on-non-empty "${APPARMOR#/}"
        # The repository may lie there.
        mkdir -p -m 1777 tmp var/tmp)
fi

if [ -n "${POLICY:-}" ]; then
    mkdir -p "$root/etc/selinux/small/contexts"
    cp "$POLICY" "$root/etc/selinux/policy"
    [ "${SELINUX:-}" = permissive ] || : >"$root/etc/selinux/enforcing"
    printf 'SELINUXTYPE=small\n' >"$root/etc/selinux/config"
    printf 'process = "system_u:system_r:container_t:s0"\nfile = "system_u:object_r:container_file_t:s0"\n' \
        >"$root/etc/selinux/small/contexts/lxc_contexts"
fi

# Busybox is everything else; some have a fixed place, as /sbin/modprobe, which the kernel calls.
add /bin/busybox
for applet in $(busybox --list-full | sed -n 's|^usr/||;/bin./p'); do
    name=${applet##*/}
    [ -e "$root/usr/bin/$name" ] || [ -e "$root/usr/sbin/$name" ] || ln -s ../bin/busybox "$root/usr/$applet"
done

# One test compiles a program for its image.
compiler() {
    add /usr/bin/cc "$(cc -print-prog-name=cc1)" "$(cc -print-prog-name=collect2)"
    program as ld
    for file in crt1.o crti.o crtn.o crtbeginT.o crtend.o libc.a libgcc.a libgcc_eh.a liblto_plugin.so; do
        add "$(realpath "$(cc -print-file-name=$file)")"
    done
    for directory in /usr/include "$(cc -print-file-name=include)"; do
        mkdir -p "$root$directory"
    done
    cp -RL "$(cc -print-file-name=include)/." "$root$(cc -print-file-name=include)/"
    (cd /usr/include && cp -RL --parents ./*.h arpa asm-generic bits gnu linux netinet sys x86_64-linux-gnu \
        "$root/usr/include/" 2>/dev/null) || true
}
compiler

## === configuration ===

printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
mkdir -p "$root/etc/containers" "$root/etc/ssl/certs" "$root/usr/lib/ssl"
printf '{"default": [{"type": "insecureAcceptAnything"}]}\n' >"$root/etc/containers/policy.json"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/" 2>/dev/null || true
cp -L /etc/ssl/openssl.cnf "$root/usr/lib/ssl/"
install -m 0755 init "$root/init"

## === modules ===

# What networks and file systems may need; the kernel loads them by itself when they are asked for.
version=$(ls "$kernel/modules")
from=$kernel/modules/$version to=$root/usr/lib/modules/$version
mkdir -p "$to"
cp "$from"/modules.* "$to/"
for part in net/netfilter net/ipv4 net/ipv6 net/bridge net/8021q net/802 net/llc net/sched net/core net/key net/xfrm \
    net/packet net/unix net/netlink net/mpls net/l2tp drivers/net/ipvlan drivers/net/vxlan drivers/net/wireguard \
    drivers/net/bonding fs/overlayfs fs/fuse fs/erofs fs/squashfs fs/nls drivers/block/loop.ko crypto lib arch; do
    [ -e "$from/kernel/$part" ] || continue
    mkdir -p "$to/kernel/$(dirname "$part")"
    cp -R "$from/kernel/$part" "$to/kernel/$(dirname "$part")/"
done
cp "$from"/kernel/drivers/net/*.ko "$to/kernel/drivers/net/"
busybox depmod -b "$root" "$version"

# Not compressed: unpacking would cost the slow machine more than reading costs the fast one.
(cd "$root" && find . -mindepth 1 | busybox cpio -o -H newc -R 0:0) >"$image.new" 2>/dev/null
mv "$image.new" "$image"
rm -rf "$root"
