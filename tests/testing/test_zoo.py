"""The kit is red on each broken plugin, in the check that is about its fault and in no other;
green on healthy ones.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from torch import nn

from trainkit.testing import Case, run_checks

HERE = Path(__file__).parent
HEALTHY = f"{HERE / 'healthy.py'}:"
SMALL = {"data": {"image_size": 8}, "plugins": {f"{HEALTHY}TinyNet": {}}}


def _plugins(*files: str) -> list[str]:
    """Return every plugin in files of this folder as `path:Class`, without importing them."""
    targets = []
    for file in files:
        for node in ast.parse((HERE / file).read_text()).body:
            bases = (
                {ast.unparse(base) for base in node.bases}
                if isinstance(node, ast.ClassDef)
                else set()
            )
            if isinstance(node, ast.ClassDef) and bases & {"Plugin", "Broken", "Scales"}:
                targets.append(f"{HERE / file}:{node.name}")
    return [target for target in targets if not target.endswith((":Broken", ":Scales"))]


def _class_name(target: str) -> str:
    return target.rpartition(":")[2]


@pytest.mark.parametrize(
    "target", _plugins("zoo_trained.py", "zoo_kept.py", "zoo_declared.py"), ids=_class_name
)
def test_a_broken_plugin_fails_the_check_that_is_about_its_fault(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Linear, "forward", nn.Linear.forward)  # one of them changes it
    case = Case(target, recipe=SMALL)
    failed = {o.check: o.message for o in run_checks(case) if o.status == "failed"}
    if "check_isolated" in failed:
        case.forget()  # the baselines of a process that the test is about to mend
    assert list(failed) == [case.cls.fails], failed  # type: ignore[attr-defined]
    assert all(failed.values())


RECIPES = {
    "TinyNet": {},  # against timm's model, which it replaces
    "Listens": {**SMALL, "plugins": {f"{HEALTHY}Speaks": {}, f"{HEALTHY}TinyNet": {}}},
}


@pytest.mark.parametrize("target", _plugins("healthy.py"), ids=_class_name)
def test_a_healthy_plugin_passes_every_check(target: str) -> None:
    outcomes = run_checks(target, recipe=RECIPES.get(_class_name(target), SMALL))
    assert [str(o) for o in outcomes if o.status not in ("passed", "does not apply")] == []
    assert (
        sum(o.status == "passed" for o in outcomes) >= len(outcomes) - 2
    )  # neutral and invisible exclude each other
