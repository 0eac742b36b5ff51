"""The kit is red on each broken plugin, in the check that is about its fault and in no other; green on healthy ones."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from trainkit.testing import Case, run_checks

HERE = Path(__file__).parent
SMALL = {"data": {"image_size": 8}, "plugins": {str(HERE / "healthy.py:TinyNet"): {}}}


def _classes(*files: str) -> list[str]:
    """Return every plugin in files of this folder as `path:Class`, without importing them."""
    targets = []
    for file in files:
        for node in ast.parse((HERE / file).read_text()).body:
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            if bases and isinstance(node, ast.ClassDef) and node.name not in ("Broken", "Scales"):
                targets.append(f"{HERE / file}:{node.name}")
    return targets


BROKEN = _classes("zoo_trained.py", "zoo_kept.py", "zoo_declared.py")


@pytest.mark.parametrize("target", BROKEN, ids=lambda target: target.rpartition(":")[2])
def test_a_broken_plugin_fails_the_check_that_is_about_its_fault(target: str) -> None:
    case = Case(target, recipe=SMALL)
    failed = {o.check: o.message for o in run_checks(case) if o.status == "failed"}
    assert list(failed) == [case.cls.fails], failed  # type: ignore[attr-defined]
    assert all(failed.values())
