#!/bin/sh
# Makes an archive with the image test/busybox:1, as `docker save` does: busybox-image.sh FILE
set -eu
target=$(realpath "$1")
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
mkdir -p "$directory/root/bin" "$directory/root/tmp"
cp "$(command -v busybox)" "$directory/root/bin/busybox"
for name in sh sleep cat echo true ls mount; do
    ln -s busybox "$directory/root/bin/$name"
done
tar -C "$directory/root" --owner=0 --group=0 --numeric-owner -cf "$directory/layer.tar" .
digest=$(sha256sum "$directory/layer.tar" | cut -d ' ' -f 1)
cat >"$directory/config.json" <<JSON
{"architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$digest"]}}
JSON
echo '[{"Config": "config.json", "RepoTags": ["test/busybox:1"], "Layers": ["layer.tar"]}]' >"$directory/manifest.json"
tar -C "$directory" -cf "$target" manifest.json config.json layer.tar
