#!/usr/bin/env python3
"""Writes docs/conformance.md from JUnit reports of runs of critest: of this machine, and of the second one (tests/vm) with its kernels.

    report.py REPORT.xml [KERNEL=REPORT.xml]... >docs/conformance.md

A kernel may be named more than once: of runs of parts of the suite the later ones count where they ran a spec.
"""
import platform
import re
import sys
import xml.etree.ElementTree as ElementTree

# Why a spec can't pass, or can't run, where the report does not say it well enough.
REASONS = [
    (r"public image with digest", "asks for the real image by its digest, which no substitute can have"),
    (r"\[k8s\.io\] AppArmor", "AppArmor is not on on this host"),
    (r"benchmark", "measures, and judges nothing: run with `-ginkgo.focus=benchmark`"),
    (r"UserNamespaces", "this kernel lacks what user namespaces of pods need, and Status says so"),
]
# The same on a kernel of the second machine.
SECOND = {
    "6.1": [(r"UserNamespaces", "needs linux 6.3")],
}


def reason(name, said, more):
    for pattern, text in more + REASONS:
        if re.search(pattern, name):
            return text
    return " ".join(said.split())[:200] or "see the run's output"


def read(path, more):
    """Results by the name of the spec: what happened, and why."""
    specs = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = case.get("name")
        if not name.startswith("[It] "):
            continue
        name = name[len("[It] "):]
        found = [node for node in case if node.tag in ("failure", "error", "skipped")]
        if not found:
            specs[name] = ("pass", "")
        elif found[0].tag == "skipped":
            said = re.sub(r"^skipped( - )?", "", found[0].get("message") or "")
            specs[name] = ("skipped", reason(name, said, more))
        else:
            specs[name] = ("**fail**", reason(name, found[0].get("message") or "", more))
    return specs


def count(specs):
    of = {state: sum(1 for spec in specs.values() if spec[0] == state) for state in ("pass", "**fail**", "skipped")}
    return f"{len(specs)} | {of['pass']} | {of['**fail**']} | {of['skipped']}"


def cell(results, name):
    return results.get(name, ("not run", ""))


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    here = "linux " + ".".join(platform.release().split(".")[:2])
    # In the order of the columns.
    runs = {here: read(sys.argv[1], [])}
    for argument in sys.argv[2:]:
        kernel, _, path = argument.partition("=")
        run = runs.setdefault(kernel, {})
        for name, result in read(path, SECOND.get(kernel, [])).items():
            if name not in run or result[0] != "skipped":
                run[name] = result
    print(
        """# Conformance

What critest (kubernetes-sigs/cri-tools, HEAD) says of Berth, spec by spec. Written by `tests/conformance/report.py` from runs
of `make conformance CRITEST=/path/to/critest` and `make test-vm CRITEST=/path/to/critest`; do not edit.

| machine | specs | pass | fail | skipped |
| --- | --- | --- | --- | --- |"""
    )
    for kernel, run in runs.items():
        machine = "cgroup v1" if kernel == here else "Debian's, cgroup v2, AppArmor, emulated"
        print(f"| {kernel if kernel == here else 'linux ' + kernel}, {machine} | {count(run)} |")
    print(
        """
The runs: images from a private registry that stands in for the public ones (`tests/conformance/images.py` says how), a daemon
of its own in a network namespace of its own. critest is not part of this repository; build it with `make critest` in a checkout
of cri-tools.
"""
    )
    columns = ["spec", *(kernel.removeprefix("linux ") for kernel in runs), "why"]
    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns))
    for name in sorted(set().union(*runs.values())):
        states = {kernel: cell(run, name) for kernel, run in runs.items()}
        whys = {}
        for kernel, (_, why) in states.items():
            if why:
                whys.setdefault(why, []).append(kernel.removeprefix("linux "))
        # What holds on all machines needs no name of one.
        why = "; ".join(why if len(on) == len(runs) else f"{', '.join(on)}: {why}" for why, on in whys.items())
        cells = [name.removeprefix("[k8s.io] ").replace("|", "\\|"), *(state for state, _ in states.values()), why.replace("|", "/")]
        print("| " + " | ".join(cells) + " |")


main()
