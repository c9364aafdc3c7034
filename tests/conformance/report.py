#!/usr/bin/env python3
"""Writes docs/conformance.md from the JUnit report of a run of critest.

    report.py REPORT.xml >docs/conformance.md
"""
import platform
import re
import sys
import xml.etree.ElementTree as ElementTree

# Why a spec can't pass, or can't run, where the report does not say it well enough.
REASONS = [
    (r"public image with digest", "asks for the real image by its digest, which no substitute can have"),
    (r"\[k8s\.io\] AppArmor", "AppArmor is not on on this host"),
    (r"\[k8s\.io\] NRI|Node Resource Interface", "Berth has no NRI socket yet"),
    (r"benchmark", "measures, and judges nothing: run with `-ginkgo.focus=benchmark`"),
    (r"UserNamespaces", "this kernel lacks what user namespaces of pods need, and Status says so"),
]


def reason(name, said):
    for pattern, text in REASONS:
        if re.search(pattern, name):
            return text
    return " ".join(said.split())[:200] or "see the run's output"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    specs = []
    for case in ElementTree.parse(sys.argv[1]).getroot().iter("testcase"):
        name = case.get("name")
        if not name.startswith("[It] "):
            continue
        name = name[len("[It] "):]
        found = [node for node in case if node.tag in ("failure", "error", "skipped")]
        if not found:
            specs.append((name, "pass", ""))
        elif found[0].tag == "skipped":
            specs.append((name, "skipped", reason(name, re.sub(r"^skipped( - )?", "", found[0].get("message") or ""))))
        else:
            specs.append((name, "**fail**", reason(name, found[0].get("message") or "")))
    specs.sort()
    count = {state: sum(1 for spec in specs if spec[1] == state) for state in ("pass", "**fail**", "skipped")}
    print(
        f"""# Conformance

What critest (kubernetes-sigs/cri-tools, HEAD) says of Berth, spec by spec. Written by `tests/conformance/report.py` from a run
of `make conformance CRITEST=/path/to/critest`; do not edit.

| specs | pass | fail | skipped |
| --- | --- | --- | --- |
| {len(specs)} | {count["pass"]} | {count["**fail**"]} | {count["skipped"]} |

The run: linux {'.'.join(platform.release().split('.')[:2])}, images from a private registry that stands in for the public ones
(`tests/conformance/images.py` says how), a daemon of its own in a network namespace of its own. critest is not part of this
repository; build it with `make critest` in a checkout of cri-tools.

| spec | result | why |
| --- | --- | --- |"""
    )
    for name, state, why in specs:
        name = name.removeprefix("[k8s.io] ").replace("|", "\\|")
        print(f"| {name} | {state} | {why.replace('|', '/')} |")


main()
