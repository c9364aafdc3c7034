#!/bin/sh
# Runs the installer on a machine that systemd runs: Debian's userland and cloud kernel in QEMU. tests/vm/node-guest.sh is what
# happens there, or what GUEST names beside it (pods-guest.sh: pods in systemd's scopes).
#
# KERNEL  package of the kernel      (default: what linux-image-cloud-amd64 stands for)
# MEMORY  MiB (3072)   CPUS (1)   NICE (10)   LIMIT  seconds until it is ended (1200)    WORK  where it builds (target/vm)
# DEB     the package that is installed there as well; none: that part is passed over
#
# Leaves the serial line's text in $WORK/node.log; exits with the guest's own status, 125 when it ended without telling one.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
work=${WORK:-target/vm}
mkdir -p "$work"
work=$(cd "$work" && pwd)
programs=$(realpath "${BERTH_BIN_DIR:-target/debug}")
kernel=$("$here/kernel.sh" "$work" "${KERNEL:-linux-image-cloud-amd64}")

# Debian, once. Archives may follow each other in an image: only the second one is made anew each time.
base=$work/debian.cpio
if [ ! -s "$base" ]; then
    debian=$work/debian.d
    rm -rf "$debian"
    debootstrap --variant=minbase \
        --include=systemd,systemd-sysv,kmod,nftables,iproute2,libseccomp2,procps,busybox-static \
        "$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)" "$debian" >"$work/debootstrap.log" 2>&1 || {
        tail -n 20 "$work/debootstrap.log" >&2
        exit 125
    }
    rm -rf "$debian"/var/cache/apt/* "$debian"/var/lib/apt/lists/* "$debian"/usr/share/doc "$debian"/usr/share/man \
        "$debian"/usr/share/locale
    (cd "$debian" && find . -mindepth 1 -xdev | busybox cpio -o -H newc -R 0:0 2>/dev/null) >"$base.new"
    mv "$base.new" "$base"
    rm -rf "$debian"
fi

## === what is of ours in it ===

root=$work/node.d
rm -rf "$root"
mkdir -p "$root/new" "$root/berth" "$root/berth.images" "$root/usr/bin" "$root/etc/systemd/system/multi-user.target.wants"
for name in berthd berth berth-shim berth-cni; do
    strip --strip-debug -o "$root/berth/$name" "$programs/$name"
done
install -m 0755 "$here/${GUEST:-node-guest.sh}" "$root/node-guest"
"$here/busybox-image.sh" "$root/berth.images/busybox.tar"
if runc=$(command -v runc); then
    cp -L "$runc" "$root/usr/bin/runc"
fi
[ -z "${DEB:-}" ] || cp "$DEB" "$root/berth.deb"
# Somebody's own, to come back as it was.
printf 'runtime-endpoint: unix:///run/containerd/containerd.sock\n' >"$root/etc/crictl.yaml"
chmod 0640 "$root/etc/crictl.yaml"
touch -d '2024-02-03 04:05:06 UTC' "$root/etc/crictl.yaml"
# A container's root can't be changed away from the kernel's first file system: systemd starts on another.
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t tmpfs -o mode=755,size=90% tmpfs /new
/bin/busybox cp /bin/busybox /new/busybox
for entry in /*; do
    case $entry in /new | /init) ;; *) /new/busybox mv "$entry" /new/ ;; esac
done
/new/busybox mkdir -p /new/new
exec /new/busybox switch_root /new /sbin/init
INIT
chmod 0755 "$root/init"
# Something that is told which runtime to talk to, as the kubelet is.
cat >"$root/usr/bin/kubelet" <<'KUBELET'
#!/bin/sh
echo "$*" >/run/kubelet.arguments
exec sleep infinity
KUBELET
chmod 0755 "$root/usr/bin/kubelet"
cat >"$root/etc/systemd/system/kubelet.service" <<'UNIT'
[Service]
ExecStart=/usr/bin/kubelet --config=/var/lib/kubelet/config.yaml
[Install]
WantedBy=multi-user.target
UNIT
cat >"$root/etc/systemd/system/node-guest.service" <<'UNIT'
[Unit]
After=kubelet.service
[Service]
ExecStart=/node-guest
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
UNIT
for unit in kubelet node-guest; do
    ln -s "../$unit.service" "$root/etc/systemd/system/multi-user.target.wants/$unit.service"
done
version=$(ls "$kernel/modules")
mkdir -p "$root/usr/lib/modules/$version/kernel"
cp "$kernel/modules/$version"/modules.* "$root/usr/lib/modules/$version/"
for part in net drivers/net fs/overlayfs crypto lib arch; do
    [ ! -e "$kernel/modules/$version/kernel/$part" ] || {
        mkdir -p "$root/usr/lib/modules/$version/kernel/$(dirname "$part")"
        cp -R "$kernel/modules/$version/kernel/$part" "$root/usr/lib/modules/$version/kernel/$(dirname "$part")/"
    }
done
(cd "$root" && find . -mindepth 1 | busybox cpio -o -H newc -R 0:0 2>/dev/null) >"$work/node.cpio"
rm -rf "$root"
cat "$base" "$work/node.cpio" >"$work/node.initramfs"

timeout --foreground -k 5 "${LIMIT:-1200}" nice -n "${NICE:-10}" qemu-system-x86_64 \
    -machine q35 -accel tcg,tb-size=512 -cpu max -smp "${CPUS:-1}" -m "${MEMORY:-3072}" \
    -nodefaults -no-user-config -no-reboot -display none -serial stdio \
    -kernel "$kernel/vmlinuz" -initrd "$work/node.initramfs" \
    -append "console=ttyS0 loglevel=3 panic=-1 rdinit=/init systemd.show_status=false systemd.firstboot=off systemd.mask=systemd-udevd.service systemd.mask=console-getty.service systemd.mask=getty.target" \
    </dev/null 2>"$work/qemu.log" | sed -u 's/\r//g' | tee "$work/node.log" || true
status=$(sed -n 's/^test-vm: exit status \([0-9]*\)$/\1/p' "$work/node.log" | tail -n 1)
[ -z "$status" ] || exit "$status"
cat "$work/qemu.log" >&2
echo "the machine ended without a result" >&2
exit 125
