#!/usr/bin/env python3
"""Builds the images that critest asks for and pushes them to a registry.

    images.py REGISTRY [SHELL]          e.g. images.py 127.0.0.1:5577

critest names images of registry.k8s.io, k8s.gcr.io and gcr.io. These stand-ins behave as the suite's sources say the real
ones do, and are made of the statically linked busybox of this machine. The daemon finds them under their real names
because its registry configuration mirrors those hosts (see run.sh): RepoTags must hold the real names.

SHELL is a busybox whose shell looks for commands in PATH only, for the spec that masks /bin/ls: the static one of Debian
prefers its own applets and so never notices. Debian's dynamically linked one does (run.sh gets it); its libraries are taken
from this machine. Without it that spec fails.

One image can't be had this way: test-image-digest is asked for by the digest of the real one.
"""
import gzip
import hashlib
import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile

BUSYBOX = shutil.which("busybox") or sys.exit("busybox is missing: apt-get install busybox-static")
TOOLS = "gcr.io/k8s-staging-cri-tools/"
E2E = "registry.k8s.io/e2e-test-images/"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"

# Debian's busybox lacks a few applets the suite calls.
SCRIPTS = {
    "pgrep": """#!/bin/sh
found=1
for process in /proc/[0-9]*; do
    read -r name <"$process/comm" 2>/dev/null || continue
    case $name in *"$1"*) echo "${process#/proc/}"; found=0 ;; esac
done
exit $found
""",
    "ipcs": "#!/bin/sh\nexec cat /proc/sysvipc/shm\n",
}

PASSWD = """root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
GROUP = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"


def read(path):
    with open(path, "rb") as file:
        return file.read()


def layer(files=(), links=(), directories=()):
    """A layer: (path, content, mode), (path, target), (path, mode). Targets of files in it make hard links, as in the real
    busybox image: a masked path must not mask all that its link leads to."""
    raw, paths = io.BytesIO(), {path for path, _, _ in files}
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, mode in directories:
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            archive.addfile(entry)
        for path, content, mode in files:
            content = content if isinstance(content, bytes) else content.encode()
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
        for path, target in links:
            entry = tarfile.TarInfo(path)
            hard = target in paths
            entry.type, entry.linkname, entry.mode = tarfile.LNKTYPE if hard else tarfile.SYMTYPE, target, 0o755
            archive.addfile(entry)
    return raw.getvalue()


def base():
    applets = subprocess.check_output([BUSYBOX, "--list"], text=True).split()
    names = ["bin", "dev", "etc", "home", "proc", "root", "run", "sbin", "sys", "usr", "usr/bin", "usr/sbin", "var", "var/www"]
    busybox = read(BUSYBOX)
    files, shell = [("bin/busybox", busybox, 0o755)], set()
    if SHELL:
        shell = {"sh"}
        files.append(("bin/sh", read(SHELL), 0o755))
        needed = subprocess.check_output(["ldd", SHELL], text=True).split()
        files += [(path[1:], read(path), 0o755) for path in needed if path.startswith("/")]
        names += sorted({path.rsplit("/", depth)[0][1:] for path in needed if path.startswith("/") for depth in (1, 2)} - {""})
    links = [(f"bin/{name}", "bin/busybox") for name in applets if name not in {"busybox", *SCRIPTS, *shell}]
    return layer(
        files=[
            *files,
            ("etc/passwd", PASSWD, 0o644),
            ("etc/group", GROUP, 0o644),
            *[(f"bin/{name}", text, 0o755) for name, text in SCRIPTS.items()],
        ],
        links=[*links, ("var/run", "../run")],
        directories=[(name, 0o755) for name in names] + [("tmp", 0o1777)],
    )


def web(port):
    """What the suite sees of nginx and of httpd: a process of that name, its pid file, a line in the log, and a page."""
    server = f"""#!/bin/sh
echo $$ >/var/run/nginx.pid
echo "httpd: serving port {port}"
httpd -f -p {port} -h /usr/share/nginx/html &
trap 'kill $!; exit 0' TERM QUIT INT
while :; do wait; done
"""
    page = "<html><head><title>Welcome to nginx!</title></head><body><h1>Welcome to nginx!</h1></body></html>\n"
    names = ["usr", "usr/sbin", "usr/share", "usr/share/nginx", "usr/share/nginx/html"]
    return layer(
        files=[("usr/sbin/nginx", server, 0o755), ("usr/share/nginx/html/index.html", page, 0o644)],
        directories=[(name, 0o755) for name in names],
    )


def marker(text):
    return layer(files=[(f"etc/{text}", f"{text}\n", 0o644)])


def no_new_privileges():
    """A set-user-id program that tells whether that counted."""
    source = """#include <stdio.h>
#include <unistd.h>
int main(void) { printf("Effective uid: %d\\n", (int)geteuid()); return 0; }
"""
    with tempfile.TemporaryDirectory() as directory:
        program = os.path.join(directory, "nnp")
        subprocess.run(["gcc", "-static", "-O", "-x", "c", "-o", program, "-"], input=source, text=True, check=True)
        return layer(files=[("nnp", read(program), 0o4755)])


def images():
    common = base()
    path = {"Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"], "Cmd": ["sh"]}
    yield E2E + "busybox:1.29-2", path, [common]
    # The suite looks for these words in its command line.
    nginx = path | {"Entrypoint": ["/usr/sbin/nginx", "master process"], "Cmd": []}
    yield E2E + "nginx:1.14-2", nginx | {"ExposedPorts": {"80/tcp": {}}}, [common, web(80)]
    yield E2E + "httpd:2.4.39-4", nginx, [common, web(80)]
    yield E2E + "nonewprivs:1.3", path | {"Entrypoint": ["/nnp"], "Cmd": []}, [common, no_new_privileges()]
    for machine in ("amd64", "arm64"):
        yield f"{TOOLS}hostnet-nginx-{machine}:latest", nginx, [common, web(12003)]
    for name in ("latest:latest", "1:latest", "2:latest", "3:latest", "tag:test", "tag:all"):
        yield f"{TOOLS}test-image-{name}", path, [common, marker("test-image-" + name.replace(":", "-"))]
    for tag in ("1", "2", "3"):
        yield f"{TOOLS}test-image-tags:{tag}", path, [common, marker("test-image-tags")]
    for name, user in (
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:users"),
        ("username-group", "www-data:www-data"),
    ):
        users = layer(files=[("etc/group", GROUP + "users:x:100:\n", 0o644)])
        yield f"{TOOLS}test-image-user-{name}:latest", path | {"User": user}, [common, users]
    groups = layer(
        files=[
            ("etc/passwd", PASSWD + "default-user:x:1000:1000::/home/default-user:/bin/sh\n", 0o644),
            ("etc/group", GROUP + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n", 0o644),
        ]
    )
    yield f"{TOOLS}test-image-predefined-group:latest", path | {"User": "1000"}, [common, groups]
    # One repository behind both names: the registry is the mirror of both hosts.
    yield "registry.k8s.io/pause:3.9", path | {"Cmd": ["sleep", "1000000"]}, [common, marker("pause")]


class Registry:
    """Pushes by the OCI distribution specification."""

    def __init__(self, address):
        self.address = address

    def call(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(self.address, timeout=30)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        answer.read()
        return answer

    def blob(self, repository, content):
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        if self.call("HEAD", f"/v2/{repository}/blobs/{digest}").status != 200:
            where = self.call("POST", f"/v2/{repository}/blobs/uploads/").getheader("Location")
            where = where.split(self.address, 1)[-1]
            where += ("&" if "?" in where else "?") + "digest=" + digest
            answer = self.call("PUT", where, content, {"Content-Type": "application/octet-stream"})
            if answer.status != 201:
                sys.exit(f"{repository}: pushing {digest}: {answer.status}")
        return {"digest": digest, "size": len(content)}

    def push(self, name, config, layers, packed):
        repository, tag = name.split("/", 1)[1].rsplit(":", 1)
        document = {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[MACHINE],
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(raw).hexdigest() for raw in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG} | self.blob(repository, json.dumps(document).encode()),
            "layers": [{"mediaType": LAYER} | self.blob(repository, packed(raw)) for raw in layers],
        }
        body = json.dumps(manifest).encode()
        answer = self.call("PUT", f"/v2/{repository}/manifests/{tag}", body, {"Content-Type": MANIFEST})
        if answer.status != 201:
            sys.exit(f"{name}: pushing the manifest: {answer.status}")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    registry, done = Registry(sys.argv[1]), {}

    def packed(raw):
        if raw not in done:
            done[raw] = gzip.compress(raw, 6, mtime=0)
        return done[raw]

    for name, config, layers in images():
        registry.push(name, config, layers, packed)
        print(name)


SHELL = sys.argv[2] if len(sys.argv) == 3 else None
MACHINE = subprocess.check_output(["uname", "-m"], text=True).strip()
main()
