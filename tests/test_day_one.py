"""What a developer meets on the first day is true: the commit hooks, the page, its commands."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_commit_hooks_are_local_and_what_ci_runs() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    assert [hook["id"] for hook in repo["hooks"]] == ["format", "lint", "types", "layers"]
    ci = (ROOT / ".ci" / "run").read_text()
    for hook in repo["hooks"]:
        assert hook["language"] == "system"
        program, *arguments = hook["entry"].split()
        assert f'"$bin/{program}" {" ".join(arguments)}'.strip() in ci, hook["entry"]
