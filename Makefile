# Each target does its own set-up: on a fresh Debian or Ubuntu, as root, any of them works from a clean clone.
#
#   make demo    a web server pod from a private registry, start to end      (IMAGE=... pulls that instead)
#   make test    format, lints, unit tests, integration tests
#   make test-vm the integration tests on a second kind of machine: cgroup v2, Debian's kernel, in QEMU
#                (FILTER=containers chooses; CRITEST=/path/to/critest runs that there; tests/vm/README.md)
#   make test-vm-node  the installer there, on a Debian that systemd runs   (GUEST=pods-guest.sh: pods in its scopes)
#   make bench   Berth and Debian's containerd side by side; joining a network beside the bare netlink calls; throughput beside
#                paths made by hand
#   make conformance CRITEST=/path/to/critest    the kubelet's view: cri-tools' suite, which you bring (docs/conformance.md)
#   make docs    the documentation as a book, in target/docs (mdbook is built into target/tools when it is missing)
#   make install PREFIX=/usr/local           (and uninstall; DESTDIR=... for packagers)
#   make static  programs that need no library of the host, in target/static
#   make deb     target/debian/berth.deb

PREFIX     ?= /usr/local
DESTDIR    ?=
SYSCONFDIR ?= /etc
UNITDIR    ?= $(if $(filter /usr,$(PREFIX)),/lib/systemd/system,/etc/systemd/system)
CARGO      ?= cargo
RUST_FLOOR := 1.95
SUDO       := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := build
.PHONY: setup setup-build setup-peers build release static lint test test-vm test-vm-node bench demo conformance docs stage install \
  install-files uninstall deb deb-files clean

## === set-up ===

# What compiling needs, and what tests, benchmark and demo run against. apt is asked only for what is missing.
setup: setup-build setup-peers

setup-build:
	@tests/setup.sh toolchain $(RUST_FLOOR) "$(CARGO)"
	@$(SUDO) tests/setup.sh build

setup-peers:
	@$(SUDO) tests/setup.sh peers
	@$(SUDO) tests/setup.sh criu target/criu

## === building ===

build: setup-build
	$(CARGO) build --workspace --bins

# The shim is there once a container: a static binary without relocations has no private memory to speak of.
release: HOST = $(shell rustc -vV | sed -n 's/^host: //p')
release: SECCOMP = $(shell $${CC:-cc} -print-file-name=libseccomp.a)
release: setup-build
	$(CARGO) build --release --bins --package berth --package berth-cni
	LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH="$$(dirname "$(SECCOMP)")" \
	  RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
	  $(CARGO) build --release --package berth-shim --target "$(HOST)" --target-dir target
	install -m 0755 target/$(HOST)/release/berth-shim target/release/berth-shim

lint: setup-build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

## === running ===

# One profile for everything: the integration tests run the debug binaries that are built here anyway.
test: setup lint
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace

# Minutes, not seconds: the machine is emulated.
test-vm: setup build
	@$(SUDO) tests/setup.sh vm
	CARGO="$(CARGO)" CRITEST="$(CRITEST)" tests/vm/run.sh $(FILTER)

# The installer and the Debian package, of debug programs, on a machine that systemd runs.
test-vm-node: setup build
	@$(SUDO) tests/setup.sh vm
	install -D -s -t target/vm/programs/release $(addprefix target/debug/,berthd berth berth-shim berth-cni)
	$(MAKE) deb-files BIN=target/vm/programs/release DEB=target/vm/berth.deb DEB_FLAGS=--fast
	$(SUDO) env GUEST="$(GUEST)" DEB=$(CURDIR)/target/vm/berth.deb NICE="$(NICE)" CPUS="$(CPUS)" LIMIT="$(LIMIT)" tests/vm/node.sh

# Lints are part of `test`. `cargo bench` shares its artefacts with the release build.
bench: setup release
	BERTH_BIN_DIR=$(CURDIR)/target/release $(CARGO) bench --bench lifecycle
	$(CARGO) run --release --package berth-cni --example join_bench
	$(CARGO) run --release --package berth-cni --example ports_bench
	$(CARGO) run --release --package berth-cni --example throughput_bench

demo: setup release
	$(SUDO) env IMAGE="$(IMAGE)" BERTH_BIN_DIR=$(CURDIR)/target/release tests/demo.sh

# critest is built from kubernetes-sigs/cri-tools by `make critest`. FOCUS is a regular expression for part of the suite.
CRITEST ?=
FOCUS   ?=
conformance: setup build
	@[ -x "$(CRITEST)" ] || { echo "CRITEST=/path/to/critest is missing; build it with \`make critest\` in a checkout of \
	  https://github.com/kubernetes-sigs/cri-tools" >&2; exit 2; }
	$(SUDO) env REPORT=$(CURDIR)/target/critest.xml tests/conformance/run.sh "$(CRITEST)" $(if $(FOCUS),'-ginkgo.focus=$(FOCUS)')
	tests/conformance/report.py target/critest.xml $(foreach report,$(wildcard target/vm/critest-*.xml),$(report:target/vm/critest-%.xml=%)=$(report))

MDBOOK ?= $(or $(shell command -v mdbook),target/tools/bin/mdbook)
docs: $(filter target/%,$(MDBOOK))
	$(MDBOOK) build docs

target/tools/bin/mdbook:
	$(CARGO) install mdbook --locked --version '^0.5' --root target/tools --no-default-features --features search

## === installing ===

# Where the programs are that are installed; debug ones for a test.
BIN         ?= target/release
STAGE       ?= target/package
# Where bash, zsh and fish look for completions, below share.
COMPLETIONS := bash-completion/completions/berth zsh/site-functions/_berth fish/vendor_completions.d/berth.fish

install: release install-files

stage:
	packaging/stage.sh "$(BIN)" $(STAGE) "$(PREFIX)"

# Nothing is built: everything else of `install`.
install-files: stage
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/share/man/man1" "$(DESTDIR)$(PREFIX)/share/man/man8" "$(DESTDIR)$(UNITDIR)" \
	  "$(DESTDIR)$(SYSCONFDIR)/berth/conf.d"
	install -m 0755 $(addprefix $(BIN)/,berthd berth berth-shim berth-cni) "$(DESTDIR)$(PREFIX)/bin"
	ln -sf berth-shim "$(DESTDIR)$(PREFIX)/bin/containerd-shim-berth-v1"
	install -m 0644 $(STAGE)/man/*.1 "$(DESTDIR)$(PREFIX)/share/man/man1"
	install -m 0644 $(STAGE)/man/*.8 "$(DESTDIR)$(PREFIX)/share/man/man8"
	install -D -m 0644 $(STAGE)/completions/berth "$(DESTDIR)$(PREFIX)/share/$(word 1,$(COMPLETIONS))"
	install -D -m 0644 $(STAGE)/completions/_berth "$(DESTDIR)$(PREFIX)/share/$(word 2,$(COMPLETIONS))"
	install -D -m 0644 $(STAGE)/completions/berth.fish "$(DESTDIR)$(PREFIX)/share/$(word 3,$(COMPLETIONS))"
	install -m 0644 $(STAGE)/berth.service "$(DESTDIR)$(UNITDIR)/berth.service"
	install -D -m 0644 $(STAGE)/crictl.yaml "$(DESTDIR)$(PREFIX)/share/doc/berth/examples/crictl.yaml"
	[ -e "$(DESTDIR)$(SYSCONFDIR)/berth/config.toml" ] || \
	  install -m 0644 $(STAGE)/config.toml "$(DESTDIR)$(SYSCONFDIR)/berth/config.toml"

# /etc/berth and what the daemon keeps stay: they are yours.
uninstall:
	rm -f $(addprefix "$(DESTDIR)$(PREFIX)"/bin/,berthd berth berth-shim berth-cni containerd-shim-berth-v1)
	rm -f "$(DESTDIR)$(PREFIX)"/share/man/man1/berth.1 "$(DESTDIR)$(PREFIX)"/share/man/man1/berth-*.1
	rm -f $(patsubst packaging/%,"$(DESTDIR)$(PREFIX)"/share/%,$(subst /man/,/man/man8/,$(wildcard packaging/man/*.8)))
	rm -f $(addprefix "$(DESTDIR)$(PREFIX)"/share/,$(COMPLETIONS))
	rm -f "$(DESTDIR)$(UNITDIR)/berth.service"
	rm -rf "$(DESTDIR)$(PREFIX)/share/doc/berth"

# No library of the host: berthd, berth and berth-cni with musl, which finds names without one; the shim, which needs libseccomp,
# with the C library's own static parts, as in every release.
MUSL := $(shell uname -m)-unknown-linux-musl
static: release
	@$(SUDO) tests/setup.sh static
	rustup target add $(MUSL)
	CC_$(subst -,_,$(MUSL))=musl-gcc $(CARGO) build --release --bins --package berth --package berth-cni --target $(MUSL)
	install -D -t target/static $(addprefix target/$(MUSL)/release/,berthd berth berth-cni) target/release/berth-shim
	@! file target/static/* | grep -v 'statically linked\|static-pie'

# cargo-deb lands in target/tools, made once. lintian's errors and warnings are faults; bugs that a first upload closes are those of
# Debian's own packages.
DEB_VERSION ?= 3.8.0
DEB         ?= target/debian/berth.deb
DEB_FLAGS   ?=

deb: release deb-files

# Nothing is built but cargo-deb, which looks for programs in a directory `release`.
deb-files:
	$(MAKE) stage PREFIX=/usr
	@$(SUDO) tests/setup.sh deb
	[ -x target/tools/bin/cargo-deb ] || $(CARGO) install cargo-deb --version $(DEB_VERSION) --locked --root target/tools
	CARGO_TARGET_DIR="$(abspath $(dir $(BIN)))" target/tools/bin/cargo-deb --no-build --package berth $(DEB_FLAGS) --output $(DEB)
	lintian --allow-root --suppress-tags initial-upload-closes-no-bugs --fail-on error,warning $(DEB)

clean:
	$(CARGO) clean
