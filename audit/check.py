"""`make audit`: are the dependencies pinned, may they be used, is anything known against them?

It fails where a dependency is not pinned in constraints.txt, is installed in another version than
that, has a licence that nobody has looked at, or has a known vulnerability that is not in
accepted.toml. Vulnerabilities are looked up by pip-audit; where its database cannot be reached it
says so ("not audited: ...") and does not fail.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EXTRAS = ("compare", "dev")
INSTALLER = {"pip"}
"""It installs the others, and `make environment` keeps it up to date."""

OPTIONAL = {"hpbandster", "netifaces", "pyro4", "serpent"}
"""Where no C compiler is at hand they are not installed, see pyproject.toml."""

KNOWN_LICENCES = re.compile(
    r"\b(MIT|BSD|0BSD|Apache|ISC|HPND|PSF|Python Software Foundation|MPL|Mozilla|Zlib|CC0"
    r"|Unlicense|NVIDIA)\b",
    re.IGNORECASE,
)
COPYLEFT = re.compile(r"\b(A?GPL|GNU (Affero )?General Public)", re.IGNORECASE)

PATIENCE = 120.0
"""Seconds for pip-audit to ask about all packages."""


@dataclass
class Findings:
    """What is wrong, and what else is worth a line."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_pins(text: str) -> tuple[dict[str, str], list[str]]:
    """Names and versions of a constraints file, and the lines that are anything else."""
    pins: dict[str, str] = {}
    others = []
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if found := re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.+!]+)", line):
            pins[canonicalize_name(found[1])] = found[2]
        elif line:
            others.append(line)
    return pins, others


def requirements(project: Mapping[str, Any], extras: Iterable[str]) -> list[str]:
    """What a project's table in pyproject.toml asks for; extras may name others of its own."""
    lines, queue, seen = list(project["dependencies"]), list(extras), set[str]()
    while queue:
        extra = queue.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for line in project["optional-dependencies"][extra]:
            need = Requirement(line)
            if canonicalize_name(need.name) == canonicalize_name(project["name"]):
                queue += need.extras
            else:
                lines.append(line)
    return lines


def closure(lines: Iterable[str]) -> set[str]:
    """The names of what is required and of all that it needs, as far as it is installed."""
    queue = [
        (canonicalize_name(r.name), e) for r in map(Requirement, lines) for e in ("", *r.extras)
    ]
    seen: set[tuple[str, str]] = set()
    while queue:
        name, extra = queue.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                queue += [(canonicalize_name(need.name), more) for more in ("", *need.extras)]
    return {name for name, _ in seen}


def check_pins(pins: Mapping[str, str], needed: Iterable[str]) -> Findings:
    """Every package that is needed is pinned, and installed as it is pinned."""
    found = Findings()
    for name in sorted(set(needed) - INSTALLER):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = None
        if name not in pins:
            found.problems.append(f"{name} is not pinned: add {name}=={version or '…'}")
        elif version is None and name in OPTIONAL:
            found.notes.append(f"{name} is not installed")
        elif version is not None and version.partition("+")[0] != pins[name].partition("+")[0]:
            found.problems.append(f"{name} is pinned to {pins[name]}, installed is {version}")
    return found


def licence_of(name: str) -> str:
    """What a package says about its licence."""
    about: Any = metadata.metadata(name)
    classes = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier", []) if "License" in c]
    text = (about.get("License") or "").strip().splitlines()[:1]
    return about.get("License-Expression") or "; ".join(classes) or "".join(text)


def check_licences(names: Iterable[str], accepted: Mapping[str, str]) -> Findings:
    """Every licence is one of those that may be used with ours, or was looked at."""
    found = Findings()
    for name in sorted(set(names) - INSTALLER):
        try:
            licence = licence_of(name)
        except metadata.PackageNotFoundError:
            continue
        usual = KNOWN_LICENCES.search(licence) and not COPYLEFT.search(licence)
        if name not in accepted and not usual:
            found.problems.append(
                f"{name} has the licence {licence[:60]!r}: look at it, and say in "
                "audit/accepted.toml why it may be used, or do without it"
            )
    return found


def ask(pins: Mapping[str, str]) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """What pip-audit knows: vulnerabilities by package; and what it does not know, and why."""
    text = "".join(f"{name}=={version}\n" for name, version in pins.items())
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format=json"]
    command += ["--progress-spinner=off", "--timeout=10", "--requirement=/dev/stdin"]
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        told = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {PATIENCE:g} s"
    except (OSError, ValueError, KeyError):
        last = done.stderr.strip().splitlines()[-1:] or ["pip-audit said nothing"]
        return {}, re.sub(r"\(?\b(https?://|host=)\S+", "…", last[0])[:120]
    known = {d["name"]: d["vulns"] for d in told if "vulns" in d}
    missing = sorted(d["name"] for d in told if "vulns" not in d)
    if not known:
        return {}, "the database has no answer for any of the packages"
    return known, f"no answer for {', '.join(missing)}" if missing else ""


def check_vulnerabilities(
    pins: Mapping[str, str], accepted: Mapping[str, Mapping[str, str]]
) -> Findings:
    """Nothing is known against a pinned version, or it was looked at."""
    found = Findings()
    first = dict(list(pins.items())[:1])
    known, why = ask(first)  # one question tells whether there is anybody to ask
    if not known:
        found.notes.append(f"not audited: {why}")
        return found
    known, why = ask(pins)
    if why:
        found.notes.append(f"not audited: {why}")
    for name, vulnerabilities in known.items():
        for one in vulnerabilities:
            names = {str(one["id"]), *map(str, one.get("aliases") or ())}
            if names & set(accepted.get(canonicalize_name(name), {})):
                found.notes.append(f"accepted: {name} {one['id']}")
                continue
            fixed = ", ".join(map(str, one.get("fix_versions") or ())) or "nothing yet"
            found.problems.append(f"{name}=={pins[name]}: {one['id']}, fixed in {fixed}")
    return found


def main() -> int:
    """Check everything; 1 if something is wrong."""
    pins, others = read_pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    accepted = tomllib.loads((ROOT / "audit" / "accepted.toml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = closure(requirements(project, EXTRAS))
    parts = [
        Findings([f"constraints.txt: {line!r} pins nothing" for line in others]),
        check_pins(pins, needed),
        check_licences(needed, accepted.get("licences", {})),
        check_vulnerabilities(pins, accepted.get("vulnerabilities", {})),
    ]
    for part in parts:
        for line in (*part.notes, *part.problems):
            print(f"audit: {line}")
    problems = sum(len(part.problems) for part in parts)
    print(f"audit: {len(needed)} dependencies, {len(pins)} pins, {problems} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
