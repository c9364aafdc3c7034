#!/bin/sh
# Fetches Debian's package checkpolicy, unpacks it (installs nothing), and compiles the test policy beside this file. Prints the
# path of the binary policy.
#
#   selinux.sh WORK
set -eu
here=$(cd "$(dirname "$0")" && pwd)
directory=$1/selinux
if [ ! -e "$directory/checkpolicy" ]; then
    rm -rf "$directory" && mkdir -p "$directory"
    (cd "$directory" && apt-get download -q checkpolicy) >&2 || {
        echo "apt can't get checkpolicy: apt-get update?" >&2
        exit 1
    }
    dpkg-deb -x "$directory"/*.deb "$directory/unpacked"
    rm "$directory"/*.deb
    # Last: its presence says that all is there.
    mv "$directory/unpacked/usr/bin/checkpolicy" "$directory/"
    rm -rf "$directory/unpacked"
fi
seq 0 1023 | sed 's/.*/category c&;/' >"$directory/categories"
sed -e "/^@CATEGORIES@\$/r $directory/categories" -e '/^@CATEGORIES@$/d' "$here/selinux/policy.conf" >"$directory/policy.conf"
# With levels (-M); what the kernel knows and this policy does not is allowed.
"$directory/checkpolicy" -M -U allow -o "$directory/policy" "$directory/policy.conf" >&2
echo "$directory/policy"
