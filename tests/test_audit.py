"""`make audit`: what it takes for a problem, without asking anybody."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit_check", ROOT / "audit" / "check.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_only_exact_versions_are_pins(audit):
    text = "# about\nNumPy==2.4.6  # exact\nray>=2\n--index-url https://x\nx @ file:///y\n"
    pins, others = audit.read_pins(text)
    assert pins == {"numpy": "2.4.6"}
    assert others == ["ray>=2", "--index-url https://x", "x @ file:///y"]


def test_our_constraints_are_pins_alone(audit):
    pins, others = audit.read_pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert others == []
    assert "pip-audit" in pins


def test_what_is_not_pinned_or_not_as_pinned_is_a_problem(audit):
    installed = audit.metadata.version("numpy")
    assert audit.check_pins({"numpy": installed}, ["numpy", "pip"]).problems == []
    (other,) = audit.check_pins({"numpy": "0.1"}, ["numpy"]).problems
    assert other == f"numpy is pinned to 0.1, installed is {installed}"
    (none,) = audit.check_pins({}, ["numpy"]).problems
    assert none == f"numpy is not pinned: add numpy=={installed}"


def test_dependencies_are_followed_through_extras(audit):
    project = {
        "name": "Our-Own",
        "dependencies": ["ray[tune]>=2"],
        "optional-dependencies": {"a": ["our-own[b]", "rich"], "b": ["pytest"], "c": ["nothing"]},
    }
    lines = audit.requirements(project, ["a"])
    assert sorted(lines) == ["pytest", "ray[tune]>=2", "rich"]
    found = audit.closure(lines)
    assert {"ray", "pandas", "pyarrow", "rich", "pygments", "pluggy"} <= found  # of the extra tune
    assert "nothing" not in found


def test_a_licence_that_nobody_has_looked_at_is_a_problem(audit, monkeypatch):
    told = {"a": "MIT", "b": "GNU General Public License v3", "c": "", "d": "MIT OR GPL-3.0"}
    monkeypatch.setattr(audit, "licence_of", told.__getitem__)
    found = audit.check_licences(told, {"c": "looked at"}).problems
    assert [line.split()[0] for line in found] == ["b", "d"]


def answering(monkeypatch, audit, stdout, stderr=""):
    done = SimpleNamespace(stdout=stdout, stderr=stderr)
    monkeypatch.setattr(audit.subprocess, "run", lambda *args, **more: done)


def test_a_known_vulnerability_is_a_problem_unless_it_is_accepted(audit, monkeypatch):
    one = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"]}
    told = [{"name": "a", "version": "1.0", "vulns": [one]}, {"name": "b", "skip_reason": "?"}]
    answering(monkeypatch, audit, json.dumps({"dependencies": told}))
    pins = {"a": "1.0", "b": "1.0"}
    found = audit.check_vulnerabilities(pins, {})
    assert found.problems == ["a==1.0: PYSEC-1, fixed in 2.0"]
    assert found.notes == ["not audited: no answer for b"]
    found = audit.check_vulnerabilities(pins, {"a": {"CVE-1": "not used"}})
    assert found.problems == []
    assert "accepted: a PYSEC-1" in found.notes


@pytest.mark.parametrize(
    ("stdout", "stderr", "why"),
    [
        ("", "Traceback\nConnectionError: (host='some.host', port=443) failed", "failed"),
        (json.dumps({"dependencies": [{"name": "a", "skip_reason": "?"}]}), "", "no answer"),
    ],
    ids=["no network", "no database"],
)
def test_where_nobody_can_be_asked_it_says_so_and_goes_on(audit, monkeypatch, stdout, stderr, why):
    answering(monkeypatch, audit, stdout, stderr)
    found = audit.check_vulnerabilities({"a": "1.0", "b": "2.0"}, {})
    assert found.problems == []
    (note,) = found.notes
    assert note.startswith("not audited: ")
    assert why in note
    assert "some.host" not in note


def test_it_does_not_wait_for_ever(audit, monkeypatch):
    def late(*args, **more):
        raise subprocess.TimeoutExpired("pip-audit", more["timeout"])

    monkeypatch.setattr(audit.subprocess, "run", late)
    assert audit.check_vulnerabilities({"a": "1.0"}, {}).notes == [
        "not audited: no answer within 120 s"
    ]
