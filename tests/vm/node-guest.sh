#!/bin/sh
# In the machine: an installation that fails is taken back; Berth is installed, again, upgraded, taken back and uninstalled; the same
# with Debian's package. After each of the three the machine is held against what it was.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
failed=0
say() { echo "test-vm: $*"; }
check() { # WHAT COMMAND...
    what=$1
    shift
    if "$@" >/run/said 2>&1; then
        say "ok: $what ($(cut -d ' ' -f 1 /proc/uptime) s)"
    else
        failed=1
        say "FAILED: $what ($(cut -d ' ' -f 1 /proc/uptime) s)"
        sed 's/^/    /' /run/said
    fi
}
refused() { ! "$@"; }
# Files as they are, without what a machine that runs writes by itself, and dpkg's own records.
snapshot() {
    find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/log -o -path /var/lib/systemd \
        -o -path /var/lib/berth -o -path /var/lib/dpkg -o -path /var/cache -o -path /var/tmp -o -path /root -o -path /etc/machine-id \
        -o -path '/berth*' \) -prune -o \
        \( -type d -printf '%p %y %m %u %g\n' \) -o -printf '%p %y %m %u %g %s %l %T@\n' | sort
}
as_it_was() {
    snapshot >/run/after
    diff /run/before /run/after
}
property() { systemctl show "$1" --property="$2" --value; }
is() { # UNIT PROPERTY VALUE
    value=$(property "$1" "$2")
    [ "$value" = "$3" ] || {
        echo "$2 of $1 is $value"
        return 1
    }
}
patiently() { # SECONDS COMMAND...
    until=$(($(cut -d . -f 1 /proc/uptime) + $1))
    shift
    until "$@"; do
        [ "$(cut -d . -f 1 /proc/uptime)" -lt "$until" ] || return 1
        sleep 1
    done
}
switched() { grep -q -- --container-runtime-endpoint=unix:///run/berth/berth.sock /run/kubelet.arguments; }
back() { ! switched && systemctl is-active --quiet kubelet; }

say "$(systemctl --version | head -n 1), Linux $(uname -r), up since $(cut -d ' ' -f 1 /proc/uptime) s"
berth=/berth/berth
# kmod reads indexes that only its own depmod writes.
depmod
check "the kubelet runs" patiently 60 test -e /run/kubelet.arguments
snapshot >/run/before
check "a node that can run Berth" $berth node check --mode node

## === an installation that fails ===

mkdir /berth.bad
ln -s /berth/berth /berth/berth-shim /berth/berth-cni /berth.bad/
printf '#!/bin/sh\nexit 1\n' >/berth.bad/berthd
chmod 0755 /berth.bad/berthd
check "a daemon that does not start fails the installation" refused $berth node install --mode node --no-check --from /berth.bad
check "the failed one left nothing" as_it_was
check "nor does it try again" is berth LoadState not-found
check "uninstalling after that is no error" $berth node uninstall
check "and leaves all as it was" as_it_was
check "the kubelet was left alone" back

## === the installer ===

check "install" $berth node install --mode node --from /berth
check "the daemon is active, by its own word" test "$(property berth ActiveState) $(property berth Type)" = "active notify"
check "its cgroup is delegated" is berth Delegate yes
check "it starts with the machine" systemctl is-enabled berth
check "the daemon answers" berth info
check "the kubelet was switched" switched
check "crictl was switched" grep -q /run/berth/berth.sock /etc/crictl.yaml
check "the files are as installed" berth node verify
berth doctor --format json >/run/doctor.json
check "the doctor finds the daemon well" sh -c "tr -d '\n' </run/doctor.json | grep -q 'berth 0[^}]*answers'"
say "what the doctor finds otherwise:"
berth doctor | grep -v ' ok  *' | cut -c 1-150

first=$(property berth MainPID)
alive=$(property berth WatchdogTimestampMonotonic)
newer() { [ "$(property berth WatchdogTimestampMonotonic)" -gt "$alive" ]; }
check "signs of life reach systemd" patiently 120 newer

check "install again" sh -c "berth node install --mode node --from /berth >/run/again && cat /run/again && grep -q 'nothing changed' /run/again"
check "nothing was restarted" is berth MainPID "$first"

cp -R /berth /berth.next
check "upgrade" berth node install --mode node --version 9.9.9 --from /berth.next
in_use() {
    found=$(readlink /opt/berth/current)
    [ "$found" = "versions/$1" ] || {
        echo "$found is in use"
        return 1
    }
}
version=$($berth --version | cut -d ' ' -f 2)
check "the new version is in use" in_use 9.9.9
check "the daemon was started anew" test "$(property berth MainPID)" != "$first" -a "$(property berth ActiveState)" = active

# An upgrade that fails goes on with what was there.
check "an upgrade to a daemon that does not start fails" refused berth node install --mode node --version 9.9.10 --no-check --from /berth.bad
check "the version before is in use" in_use 9.9.9
check "and its daemon runs" patiently 60 is berth ActiveState active

check "back to the version before" berth node install --mode node --version "$version"
check "which is in use" in_use "$version"

# A daemon that stands still is ended and started anew by systemd.
mkdir -p /run/systemd/system/berth.service.d
printf '[Service]\nWatchdogSec=20s\n' >/run/systemd/system/berth.service.d/quick.conf
systemctl daemon-reload
systemctl restart berth
stopped=$(property berth MainPID)
kill -STOP "$stopped"
restarted() { [ "$(property berth MainPID)" != "$stopped" ] && [ "$(property berth ActiveState)" = active ]; }
check "a daemon that stands still is restarted" patiently 180 restarted
rm -rf /run/systemd/system/berth.service.d
systemctl daemon-reload

check "uninstall" $berth node uninstall
check "the daemon is gone" is berth ActiveState inactive
check "the kubelet was switched back" back
check "the machine is as it was" as_it_was

## === Debian's package ===

if [ -e /berth.deb ]; then
    check "the package installs" dpkg -i /berth.deb
    check "and starts nothing" is berth ActiveState inactive
    check "nor will it by itself" refused systemctl is-enabled berth
    check "the service starts" systemctl enable --now berth
    check "its daemon answers" patiently 60 berth info
    check "its configuration is read" berthd config check
    first=$(property berth MainPID)
    check "installed again, as an upgrade is" dpkg -i /berth.deb
    check "the daemon was restarted" test "$(property berth MainPID)" != "$first" -a "$(property berth ActiveState)" = active
    echo '# mine' >>/etc/berth/config.toml
    check "the package is removed" dpkg -r berth
    check "the daemon is stopped" is berth ActiveState inactive
    check "a configuration that was changed stays" grep -q mine /etc/berth/config.toml
    check "the package is purged" dpkg -P berth
    check "nothing is left of it" as_it_was
fi

say "up for $(cut -d ' ' -f 1 /proc/uptime) s"
say "exit status $failed"
sync
systemctl poweroff --force --force
