#!/bin/sh
# In the machine: Berth is installed, again, upgraded and uninstalled, and the machine held against what it was.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
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
# Files as they are, without what a machine that runs writes by itself.
snapshot() {
    find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/log -o -path /var/lib/systemd \
        -o -path /var/lib/berth -o -path /var/tmp -o -path /root -o -path /etc/machine-id -o -path /berth -o -path /berth.next \) -prune -o \
        \( -type d -printf '%p %y %m %u %g\n' \) -o -printf '%p %y %m %u %g %s %l %T@\n' | sort
}
property() { systemctl show "$1" --property="$2" --value; }
patiently() { # SECONDS COMMAND...
    until=$(($(cut -d . -f 1 /proc/uptime) + $1))
    shift
    until "$@"; do
        [ "$(cut -d . -f 1 /proc/uptime)" -lt "$until" ] || return 1
        sleep 1
    done
}

say "$(systemctl --version | head -n 1), Linux $(uname -r), up since $(cut -d ' ' -f 1 /proc/uptime) s"
berth=/berth/berth
# kmod reads indexes that only its own depmod writes.
depmod
check "the kubelet runs" patiently 60 test -e /run/kubelet.arguments
snapshot >/run/before
check "a node that can run Berth" $berth node check --mode node

check "install" $berth node install --mode node --from /berth
check "the daemon is active, by its own word" test "$(property berth ActiveState) $(property berth Type)" = "active notify"
systemctl status berth --no-pager --lines=3
check "its cgroup is delegated" test "$(property berth Delegate)" = yes
check "the daemon answers" berth info
check "the kubelet was switched" grep -q -- --container-runtime-endpoint=unix:///run/berth/berth.sock /run/kubelet.arguments
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
check "nothing was restarted" test "$(property berth MainPID)" = "$first"

cp -R /berth /berth.next
check "upgrade" berth node install --mode node --version 9.9.9 --from /berth.next
check "the new version is in use" test "$(readlink /opt/berth/current)" = versions/9.9.9 -o "$(readlink /opt/berth/current)" = /opt/berth/versions/9.9.9
check "the daemon was started anew" test "$(property berth MainPID)" != "$first" -a "$(property berth ActiveState)" = active
check "back to the version before" berth node install --mode node --version "$($berth --version | cut -d ' ' -f 2)"

# A daemon that stands still is ended and started anew by systemd.
stopped=$(property berth MainPID)
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
check "the daemon is gone" test "$(property berth ActiveState)" = inactive
check "the kubelet was switched back" sh -c '! grep -q container-runtime-endpoint /run/kubelet.arguments && systemctl is-active --quiet kubelet'
snapshot >/run/after
check "the machine is as it was" diff /run/before /run/after
say "up for $(cut -d ' ' -f 1 /proc/uptime) s"
say "exit status $failed"
sync
systemctl poweroff --force --force
