"""The documentation says what the code does."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest

from trainkit.errors import Interrupted
from trainkit.hooks.specs import Hooks
from trainkit.system.run_files import RUN_FILES
from trainkit.training.build import build, compose
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import fit

ROOT = Path(__file__).parents[1]
HOOKS = [name for name in vars(Hooks) if not name.startswith("_")]


def signature(name: str) -> str:
    text = str(inspect.signature(getattr(Hooks, name)))
    return f"`{name}{text.replace('(self, ', '(').replace(chr(39), '')}`"


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented_with_its_signature(name):
    section = (ROOT / "docs" / "hooks.md").read_text().split(f"\n## {name}\n")
    assert len(section) == 2
    assert section[1].split("\n## ")[0].strip().startswith(signature(name))


def test_no_hook_is_documented_that_does_not_exist():
    found = re.findall(r"^## (\w+)$", (ROOT / "docs" / "hooks.md").read_text(), re.MULTILINE)
    assert found == HOOKS


def test_the_picture_of_the_loop_is_the_same_in_the_docs():
    doc = (
        ast.get_docstring(ast.parse((ROOT / "trainkit" / "training" / "loop.py").read_text())) or ""
    )
    picture = textwrap.dedent(doc.split("::\n", 1)[1]).strip()
    assert picture in (ROOT / "docs" / "loop.md").read_text()
    building = {name for name in HOOKS if name.startswith("build_")}
    assert [word for word in re.findall(r"\w+", picture) if word in HOOKS] == [
        h for h in HOOKS if h not in building
    ]


def test_the_first_plugin_runs_as_printed(tmp_path):
    text = (ROOT / "docs" / "first_plugin.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    recipe = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert code
    assert recipe
    (tmp_path / "noise.py").write_text(code[1])
    small = (
        "model: {name: test_resnet, in_chans: 1}\ndata: {name: digits, image_size: 32, batch_size: "
        "8}\n"
    )
    (tmp_path / "noisy.yaml").write_text(small + recipe[1])
    (tmp_path / "plain.yaml").write_text(small)
    losses = {}
    for name in ("noisy", "plain"):
        run = build(compose(tmp_path / f"{name}.yaml"), tmp_path / name)
        with pytest.raises(Interrupted):
            fit(run, Checkpointer(run.folder, run), until=2)
        losses[name] = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    assert losses["noisy"][0] == losses["plain"][0]
    assert losses["noisy"][1] != losses["plain"][1]


def test_every_recipe_opens_with_its_claim_and_is_valid():
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# "), path.name
        assert any(line.startswith("# Run: trainkit train ") for line in lines), path.name
        compose(path)


def test_the_readme_lists_every_command_and_every_plugin():
    from trainkit.commands.app import app
    from trainkit.hooks.discovery import installed

    readme = (ROOT / "README.md").read_text()
    for command in app.registered_commands:
        name = (command.name or command.callback.__name__).replace("_", "-")
        assert f"`{name}" in readme, name
    for name in installed():
        assert f"`{name}`" in readme, name


def test_the_readme_has_the_table_of_a_runs_files():
    rows = [f"| `{name}` | {words} |" for name, words in RUN_FILES.items()]
    assert "\n".join(["| file | |", "|---|---|", *rows]) in (ROOT / "README.md").read_text()
