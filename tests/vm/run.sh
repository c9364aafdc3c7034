#!/bin/sh
# Runs test programs on the second kind of machine: Debian's cloud kernel in QEMU, pure cgroup v2.
#
#   run.sh [FILTER | --OPTION[=VALUE]]...      the test program runs once for each filter, with all options
#
# KERNEL  package of the kernel      (default: what linux-image-cloud-amd64 stands for)
# TEST    cargo's choice of tests    (default: --test integration; also: "-p berth-cni --test network")
# MEMORY  MiB                        (3072)       CPUS   virtual processors (1)
# CRITEST path of cri-tools' critest: it runs instead of the tests, with the words after it as its options; its report is left
#         in $WORK/critest-KERNEL.xml (critest-6.1.xml)
# SELINUX 1: SELinux with a small policy takes the place of AppArmor; permissive: it forbids nothing
# BERTH_BIN_DIR  where Berth's programs are: those of a release are quicker  (the tests' own profile)
# LIMIT   seconds until it is ended  (7200)       WORK   where it builds    (target/vm)
# NICE    of the machine (10)
#
# Leaves the serial line's text in $WORK/serial.log; exits with the tests' own status, 125 when the machine ended without
# telling one (a panic, or LIMIT).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
work=${WORK:-target/vm}
mkdir -p "$work"
work=$(cd "$work" && pwd)
[ -z "${BERTH_BIN_DIR:-}" ] || { BERTH_BIN_DIR=$(realpath "$BERTH_BIN_DIR") && export BERTH_BIN_DIR; }
limit=${LIMIT:-7200}
cargo=${CARGO:-cargo}

if [ -n "${CRITEST:-}" ]; then
    [ -x "$CRITEST" ] || { echo "CRITEST=$CRITEST: no such program" >&2; exit 125; }
    export CRITEST IMAGES="$work/images"
    # Pulled apart from the machine, which has neither python nor a network.
    [ -d "$IMAGES/docker" ] || NAME=berth-images PREPARE="$IMAGES" IMAGES='' tests/conformance/run.sh -
    programs=${BERTH_BIN_DIR:-$(realpath target/debug)}/berthd
else
    # A line of cargo's JSON for each test program it has built; what it says to people stays on the terminal.
    # shellcheck disable=SC2086 # a list of words
    programs=$("$cargo" test --no-run ${TEST:---test integration} --message-format=json-render-diagnostics |
        sed -n '/"profile":{[^}]*"test":true/s/.*"executable":"\([^"]*\)".*/\1/p')
    [ -n "$programs" ] || { echo "cargo built no test program" >&2; exit 125; }
fi

kernel=$("$here/kernel.sh" "$work" "${KERNEL:-linux-image-cloud-amd64}")
apparmor='' policy='' security='apparmor=1 security=apparmor'
if [ -n "${SELINUX:-}" ]; then
    policy=$("$here/selinux.sh" "$work")
    security='selinux=1 security=selinux enforcing=0'
else
    apparmor=$("$here/apparmor.sh" "$work")
fi
# shellcheck disable=SC2086 # a list of paths without blanks
APPARMOR=$apparmor POLICY=$policy SELINUX=${SELINUX:-} "$here/image.sh" "$work/initramfs" "$kernel" $programs

# The kernel hands init what follows `--`, word by word. No cmpxchg16b: emulated, it has left a kernel's memory allocator (6.12) with a
# pointer among its flags and a double fault.
timeout --foreground -k 5 "$limit" nice -n ${NICE:-10} qemu-system-x86_64 \
    -machine q35 -accel tcg,tb-size=512 -cpu max,-cx16 -smp "${CPUS:-1}" -m "${MEMORY:-3072}" \
    -nodefaults -no-user-config -no-reboot -display none -serial stdio \
    -kernel "$kernel/vmlinuz" -initrd "$work/initramfs" \
    -append "console=ttyS0 loglevel=1 panic=-1 $security rdinit=/init -- $*" \
    </dev/null 2>"$work/qemu.log" | sed -u 's/\r//g' | tee "$work/serial.log" || true
sed -n '/^critest.xml.gz.base64$/,/^end of critest.xml$/p' "$work/serial.log" | sed '1d;$d' | base64 -d 2>/dev/null |
    gzip -d >"$work/critest.new" 2>/dev/null || true
version=$(basename "$kernel"/modules/* | cut -d . -f 1,2)
[ ! -s "$work/critest.new" ] || mv "$work/critest.new" "$work/critest-$version.xml"
rm -f "$work/critest.new"
status=$(sed -n 's/^test-vm: exit status \([0-9]*\)$/\1/p' "$work/serial.log" | tail -n 1)
[ -z "$status" ] || exit "$status"
cat "$work/qemu.log" >&2
echo "the machine ended without a result (limit: $limit s)" >&2
exit 125
