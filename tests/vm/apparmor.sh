#!/bin/sh
# Fetches Debian's package apparmor and unpacks it; installs nothing. Prints the directory with apparmor_parser and what profiles
# include.
#
#   apparmor.sh WORK
set -eu
directory=$1/apparmor
if [ ! -e "$directory/apparmor_parser" ]; then
    rm -rf "$directory" && mkdir -p "$directory"
    (cd "$directory" && apt-get download -q apparmor) >&2 || {
        echo "apt can't get apparmor: apt-get update?" >&2
        exit 1
    }
    dpkg-deb -x "$directory"/*.deb "$directory/unpacked"
    rm "$directory"/*.deb
    mkdir "$directory/apparmor.d"
    for part in abi abstractions tunables; do
        cp -R "$directory/unpacked/etc/apparmor.d/$part" "$directory/apparmor.d/"
    done
    # Last: its presence says that all is there.
    mv "$directory"/unpacked/*bin/apparmor_parser "$directory/" 2>/dev/null ||
        mv "$directory"/unpacked/usr/*bin/apparmor_parser "$directory/"
    rm -rf "$directory/unpacked"
fi
echo "$directory"
