#!/usr/bin/env python3
"""Writes docs/conformance.md from JUnit reports of runs of critest: of this machine, and of the second one (tests/vm).

    report.py REPORT.xml [SECOND.xml]... >docs/conformance.md

The second machine is slow: its run may be made in parts, of which later ones count where they ran a spec.
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
# The same where the second machine is another.
SECOND = [
    (r"UserNamespaces", "needs linux 6.3"),
]


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


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    first = read(sys.argv[1], [])
    second = {} if len(sys.argv) > 2 else None
    for part in sys.argv[2:]:
        for name, result in read(part, SECOND).items():
            if name not in second or result[0] != "skipped":
                second[name] = result
    linux = ".".join(platform.release().split(".")[:2])
    print(
        """# Conformance

What critest (kubernetes-sigs/cri-tools, HEAD) says of Berth, spec by spec. Written by `tests/conformance/report.py` from runs
of `make conformance CRITEST=/path/to/critest` and `make test-vm CRITEST=/path/to/critest`; do not edit.

| machine | specs | pass | fail | skipped |
| --- | --- | --- | --- | --- |"""
    )
    print(f"| linux {linux}, cgroup v1 | {count(first)} |")
    if second is not None:
        print(f"| the second: Debian's 6.1, cgroup v2, AppArmor, emulated | {count(second)} |")
    print(
        """
The runs: images from a private registry that stands in for the public ones (`tests/conformance/images.py` says how), a daemon
of its own in a network namespace of its own. critest is not part of this repository; build it with `make critest` in a checkout
of cri-tools. The second machine is emulated, and slow: its column is put together from runs of parts of the suite, some of them
of builds shortly before this one.
"""
    )
    columns = ["spec", "result", "why"] if second is None else ["spec", "result", "second", "why"]
    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns))
    for name in sorted(first | (second or {})):
        state, why = first.get(name, ("", ""))
        cells = [name.removeprefix("[k8s.io] ").replace("|", "\\|"), state]
        if second is not None:
            other, other_why = second.get(name, ("not run", ""))
            cells.append(other)
            why = "; ".join(part for part in (why, other_why and f"second: {other_why}") if part) if why != other_why else why
        cells.append(why.replace("|", "/"))
        print("| " + " | ".join(cells) + " |")


main()
