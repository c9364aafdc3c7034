#!/bin/sh
# Fetches a kernel from Debian and unpacks it; installs nothing. Prints the directory with vmlinuz and modules/.
#
#   kernel.sh WORK PACKAGE    PACKAGE is an image, or a package that depends on the current one
set -eu
work=$1 package=$2

# linux-image-cloud-amd64 has no content: the first package that it depends on does.
while :; do
    next=$(apt-cache depends --important "$package" | sed -n 's/^ *Depends: \(linux-image-.*\)$/\1/p' | head -n 1)
    [ -n "$next" ] || break
    package=$next
done

directory=$work/kernel/$package
if [ ! -e "$directory/vmlinuz" ]; then
    rm -rf "$directory" && mkdir -p "$directory"
    (cd "$directory" && apt-get download -q "$package") >&2 || {
        echo "apt can't get $package: apt-get update?" >&2
        exit 1
    }
    dpkg-deb -x "$directory"/*.deb "$directory/unpacked"
    rm "$directory"/*.deb
    # Since Debian 13 modules are compressed, and in /usr.
    modules=$(find "$directory/unpacked" -type d -path '*lib/modules' | head -n 1)
    mv "$modules" "$directory/modules"
    find "$directory/modules" -name '*.ko.xz' -exec xz -d {} +
    # Last: its presence says that all is there.
    mv "$directory"/unpacked/boot/vmlinuz-* "$directory/vmlinuz"
    rm -rf "$directory/unpacked"
fi
echo "$directory"
