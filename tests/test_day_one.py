"""What a developer meets on the first day is true: the commit hooks, the page, its commands."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import trainkit.testing

ROOT = Path(__file__).parents[1]
MAP = ROOT / "docs" / "code.md"


def section(heading: str) -> str:
    """Return what stands under a heading of the map."""
    return MAP.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]


def rows(heading: str) -> list[list[str]]:
    """Return the cells of a table of the map."""
    lines = [line for line in section(heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_map_has_every_package_and_every_wing() -> None:
    host = ROOT / "trainkit"
    wings = {f"trainkit/{path.parent.name}/" for path in host.glob("*/__init__.py")}
    packages = {f"plugins/{path.parent.name}/" for path in ROOT.glob("plugins/*/__init__.py")}
    named = [re.findall(r"`([^`]+)`", row[0]) for row in rows("Wings of the host")]
    assert {name for names in named for name in names if name.endswith("/")} == wings
    folders = {row[0].strip("`") for row in rows("Packages")}
    assert packages <= folders
    assert all((ROOT / folder).is_dir() for folder in folders)


def test_the_map_names_files_that_exist() -> None:
    for place, _, begin in rows("Wings of the host"):
        folder = ROOT / re.findall(r"`([^`]+)`", place)[0]
        for file in re.findall(r"`([^`]+)`", begin):
            assert (folder / file).is_file(), f"{place}: {file}"
    named = re.findall(r"^\d+\. `([^`]+)`", section("Ten files make the loop"), re.MULTILINE)
    assert len(named) == 10
    assert all((ROOT / file).is_file() for file in named), named


def test_the_glossary_is_short_and_has_no_word_twice() -> None:
    words = [word for word, _ in rows("Glossary")]
    assert len(words) == len(set(words)) <= 25


def test_commit_hooks_are_local_and_what_ci_runs() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    assert [hook["id"] for hook in repo["hooks"]] == ["format", "lint", "types", "layers"]
    ci = (ROOT / ".ci" / "run").read_text()
    for hook in repo["hooks"]:
        assert hook["language"] == "system"
        program, *arguments = hook["entry"].split()
        assert f'"$bin/{program}" {" ".join(arguments)}'.strip() in ci, hook["entry"]


def test_contributing_names_what_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    words = set(re.findall(r"`([^`\s]+)`", text))
    paths = {word for word in words if "/" in word and "my_" not in word}
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / path).exists()]
    checks = {check.__name__ for check in trainkit.testing.checks()}
    assert {word for word in words if word.startswith("check_")} <= checks
    assert "## Add a technique" in text  # where the skeleton's last line sends its reader
