#!/bin/sh
# Puts together what is installed beside the programs, made by the programs themselves.
#
#   stage.sh BIN STAGE PREFIX    BIN: directory of the programs; STAGE: directory to fill; PREFIX: where they will be
set -eu
bin=$1 stage=$2 prefix=$3
cd "$(dirname "$0")/.."
rm -rf "$stage"
mkdir -p "$stage/man" "$stage/completions"
"$bin/berth" man "$stage/man"
"$bin/berth" completions bash >"$stage/completions/berth"
"$bin/berth" completions zsh >"$stage/completions/_berth"
"$bin/berth" completions fish >"$stage/completions/berth.fish"
"$bin/berthd" config default >"$stage/config.toml"
sed "s|/usr/local/bin/|$prefix/bin/|g" charts/berth/files/berth.service >"$stage/berth.service"
version=$("$bin/berth" --version | cut -d ' ' -f 2)
for page in packaging/man/*.8; do
    sed "s/@VERSION@/$version/g" "$page" >"$stage/man/${page##*/}"
done
# dpkg's form of a changelog, of the day of what is packed.
date=$(LC_ALL=C date -u -R -d "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}")
cat >"$stage/changelog" <<CHANGELOG
berth ($version-1) unstable; urgency=medium

  * Version $version: https://github.com/berth-dev/berth

 -- The Berth authors <berth@berth.dev>  $date
CHANGELOG
cp packaging/crictl.yaml "$stage/crictl.yaml"
ln -s berth-shim "$stage/containerd-shim-berth-v1"
