"""Recipes, overrides and files that mean harm, or are out of all proportion: one line each, at
once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.table import Table
from typer.testing import CliRunner

from trainkit import FolderName, Hooks, Plugin, Run, Terminal, UserError, own_folder
from trainkit.commands.app import app
from trainkit.config.raw import read_raw
from trainkit.config.recipe import Recipe, read_recipe
from trainkit.errors import Location, Problem, RecipeError, one_line, printable
from trainkit.log.records import Log
from trainkit.training.device import Device

Write = Callable[..., Path]
SMALL = "model: {name: mlp, in_chans: 1}\ndata: {name: digits, image_size: 8}\n"


def refusal(*arguments: str | Path) -> str:
    """Return the one line with which the command line refuses."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().split("\n")
    return line


# Out of proportion.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("".join(f"key{i}: {i}\n" for i in range(60_000)), "bytes, and at most 262,144 are read"),
        (
            "".join(f"k{i}: 1\n" for i in range(25_000)),
            "more than 10,000 values; no recipe has so many",
        ),
        (
            "[" + "1," * 60_000 + "1]",
            "1: not valid YAML: more than 10,000 values; no recipe has so many",
        ),
        ("seed: 1\nmodel:\n  a: " + "{a: " * 120 + "1", "3: not valid YAML: it nests too deeply"),
        ("- " * 90_000, "1: not valid YAML: it nests too deeply"),
        (
            "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 900)),
            "it nests too deeply",
        ),
    ],
)
def test_a_file_out_of_proportion_is_refused_while_it_is_read(
    write: Write, text: str, message: str
) -> None:
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        read_raw(write(text))
    assert time.process_time() - began < 3
    assert message in str(caught.value)


def test_a_long_file_of_few_values_is_read(write: Write) -> None:
    names = ", ".join(f"class_{i}" for i in range(3000))
    assert (
        len(read_raw(write(f"data: {{train_classes: [{names}]}}")).data["data"]["train_classes"])
        == 3000
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.args." + ".".join("a" * 5000) + "=1", "the name of a key has at most 50 dots"),
        ("~" + "a." * 900 + "b", "the name of a key has at most 50 dots"),
        ("model.args.x=" + "[" * 30_000, "it nests too deeply"),
        ("model.args.x=" + "[" + "1," * 30_000 + "]", "more than 10,000 values"),
        ("model.args.\x1b[2J=1", "the name of a key has no control characters"),
        ("model.args.\udcff=1", "the name of a key has no control characters"),
        ("model.args.x=\udcff", "it has the character U+DCFF"),
    ],
)
def test_an_override_out_of_proportion_is_one_mistake(
    write: Write, override: str, message: str
) -> None:
    (problem,) = read_raw(write(SMALL), [override]).problems
    assert message in str(problem)
    assert len(str(problem)) < 2000
    assert str(problem) == one_line(str(problem), 2000)


def test_more_overrides_than_anyone_writes_are_refused(write: Write) -> None:
    with pytest.raises(
        UserError, match="1,200 overrides are too many; write a recipe that extends this one"
    ):
        read_raw(write(SMALL), ["seed=1"] * 1200)


def test_fifty_levels_are_taken(write: Write) -> None:
    assert read_raw(write(SMALL), ["model.args." + ".".join("abcdefgh" * 5) + "=1"]).problems == []


def test_of_thousands_of_mistakes_the_first_are_said(write: Write) -> None:
    path = write("".join(f"k{i}: 1\n" for i in range(3000)))
    _, _, problems = read_recipe(path)
    lines = str(RecipeError(problems)).splitlines()
    assert len(lines) == 51
    assert lines[-1] == f"and {len(problems) - 50:,} more mistakes"


# Values.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9" * 200_000, "is not a value that can be read"),
        ("0x" + "f" * 9000, "is not a value that can be read"),
        ("-1" + "0" * 101, "is not a value that can be read"),
        ("1e999", "'1e999' is not a value that can be read"),
        ("-1e400", "'-1e400' is not a value that can be read"),
        (r'"a\0b"', "it has the character U+0000, which is no text; remove it"),
        (r'"\ud800"', "it has the character U+D800, which is no text; remove it"),
        (r'{"k\0": 1}', "it has the character U+0000, which is no text; remove it"),
    ],
)
def test_values_that_nothing_can_hold_are_refused_with_their_line(
    write: Write, text: str, message: str
) -> None:
    (problem,) = read_raw(write(f"seed: 1\nmodel:\n  name: {text}\n")).problems
    assert problem.location.line == 3
    assert message in str(problem)
    assert len(str(problem)) < 300


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize(
    "key", ["optimizer.lr", "optimizer.weight_decay", "scheduler.min_lr", "train.loss.smoothing"]
)
def test_core_takes_finite_numbers_only(write: Write, key: str, value: str) -> None:
    recipe, _, problems = read_recipe(write(SMALL), [f"{key}={value}"])
    assert recipe is None
    assert key in str(problems[0])


# Files.


def test_what_is_no_ordinary_file_is_never_opened(write: Write, tmp_path: Path) -> None:
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path in (Path("/dev/zero"), Path("/dev/null"), pipe):
        assert f"{path}: cannot be read: it is a device or a pipe, not a file" in refusal(
            "cite", path
        )
        assert f"extends: there is no file {path}" in refusal(
            "cite", write(f"extends: {path}\n{SMALL}")
        )
    assert "cannot be read: Is a directory" in refusal("cite", tmp_path)
    assert "cannot be read: Too many levels of symbolic links" in refusal("cite", loop)
    assert "extends: there is no file" in refusal("cite", write(f"extends: {loop}\n{SMALL}"))


@pytest.mark.parametrize("path", ["x" * 5000, "a/" * 3000, "/proc/1/cwd/x"])
@pytest.mark.parametrize("command", ["plan", "eval", "report", "cite", "train --resume"])
def test_paths_that_no_file_can_have(command: str, path: str) -> None:
    assert refusal(*command.split(), path).startswith("error: ")


def test_a_chain_of_recipes_ends(write: Write) -> None:
    for i in range(40):
        write(f"extends: r{i + 1}.yaml\n", f"r{i}.yaml")
    first = write("extends: r1.yaml\n", "r0.yaml")
    with pytest.raises(
        UserError, match="more than 20 recipes extend one another; write the sections out"
    ):
        read_raw(first)


def test_a_plugin_file_that_ends_python_is_a_mistake_of_the_recipe(write: Write) -> None:
    write("import sys\nsys.exit(0)\n", "leaves.py")
    path = write(f"{SMALL}plugins:\n  ./leaves.py:Leaves: {{}}\n")
    assert "recipe.yaml:4: plugins../leaves.py:Leaves" in refusal("plan", path)


# What reaches the terminal.

NASTY = "\x1b[31mred\x1b]0;title\x07\u202ebidi\x9b2J\r\x08\udc80"


def test_what_would_command_a_terminal_is_written_out() -> None:
    assert printable(NASTY) == r"\x1b[31mred\x1b]0;title\x07\u202ebidi\x9b2J\r\x08\udc80"
    assert printable("ordinary: é … 漢字 \t\n") == "ordinary: é … 漢字 \t\n"
    assert one_line("a\n\tb\r\nc") == "a b c"
    assert len(one_line("x" * 10**6)) < 1500


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_that_is_printed_holds_a_control_character(terminal: bool) -> None:
    file = StringIO()
    console = Terminal(file=file, force_terminal=terminal, width=60, color_system=None)
    table = Table("head[/]", NASTY)
    table.add_row("[bold]", NASTY)
    console.print(NASTY)
    console.print(table)
    console.print(":warning: [red]x[/red]")
    assert not [c for c in file.getvalue() if c != "\n" and printable(c) != c]
    assert ":warning: [red]x[/red]" in file.getvalue()
    assert "head[/]" in file.getvalue()


def test_a_recipe_cannot_speak_to_the_terminal(write: Write) -> None:
    path = write(
        '"\\e[2J\\e]0;mine\\a": 1\nmodel: {name: "a\\e[31m"}\nplugins: {"\\e[1m": {}}\n'
        + "data: {}\n",
        "\x1b[7m.yaml",
    )
    result = CliRunner().invoke(app, ["plan", str(path)])
    assert result.exit_code == 2
    assert "\x1b" not in result.output
    assert "\x07" not in result.output
    assert r"\x1b[31m" in result.output


def test_a_mistake_is_one_line_however_long_its_key() -> None:
    text = str(Problem(Location("a\nb" * 1000, 3), "key\n" * 5000, "wrong\n" * 5000))
    assert "\n" not in text
    assert len(text) < 2200


# Folders of plugins.


class Writer(Plugin):
    folder: FolderName = "mine"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "/tmp/x",
            "..",
            "a/../../b",
            "../x",
            "a\0b",
            "a\x1b[1mb",
            "a\nb",
            "",
            ".",
            "a//b",
            "a/",
            " a",
            "a ",
        ),
        *(
            "recipe.yaml",
            "Checkpoints",
            "checkpoints/mine",
            "metrics.jsonl",
            "report.html",
            ".hidden",
            "x" * 101,
        ),
        *("C:x", "a\\..\\b", "a/./b"),
    ],
)
def test_a_plugins_folder_cannot_leave_the_run_folder_or_be_core_s(name: str) -> None:
    with pytest.raises(ValidationError):
        Writer(folder=name)


@pytest.mark.parametrize("name", ["tensorboard", "logs/events", "a b", "v1.2", "日誌"])
def test_a_name_below_the_run_folder_is_made(tmp_path: Path, name: str) -> None:
    plugin = Writer(folder=name)
    assert own_folder(make_run(tmp_path), plugin, "folder") == tmp_path / name
    assert own_folder(make_run(tmp_path), plugin, "folder").is_dir()  # a resumed run has it already


def make_run(folder: Path) -> Run:
    recipe = Recipe.model_validate({"model": {"name": "mlp"}, "data": {"name": "digits"}})
    return Run(recipe, cast(Hooks, None), {}, Device(recipe), Log(), folder)


def test_what_stands_there_already_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "deep").mkdir(parents=True)
    (run / "file").touch()
    (run / "out").symlink_to(tmp_path)
    (run / "deep" / "out").symlink_to("../..")
    for name, message in (
        ("file", "file cannot be made: File exists; choose another name"),
        ("file/below", "file/below cannot be made: Not a directory; choose another name"),
        ("out", "out is a link that leads out of the run folder"),
        ("out/below", "out/below is a link that leads out of the run folder"),
        ("deep/out", "deep/out is a link that leads out of the run folder"),
    ):
        with pytest.raises(UserError) as caught:
            own_folder(make_run(run), Writer(folder=name), "folder")
        assert message in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_a_recipe_with_such_a_folder_is_refused_with_its_line(write: Write) -> None:
    path = write(f"{SMALL}plugins:\n  tensorboard:\n    folder: ../../elsewhere\n")
    assert refusal("plan", path).startswith(
        f"error: {path}:5: plugins.tensorboard.folder: give a name below the run"
    )


def test_the_schema_still_says_that_it_is_a_string() -> None:
    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        folder: FolderName = "x"

    schema: dict[str, Any] = Options.model_json_schema()["properties"]["folder"]
    assert schema["type"] == "string"
    assert schema["minLength"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's file names")
def test_a_file_whose_name_is_no_text(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\xfe.yaml"
    Path(os.fsdecode(name)).write_text("seed: x")
    result = CliRunner().invoke(app, ["plan", os.fsdecode(name)])
    assert result.exit_code == 2
    assert r"\udcff\udcfe.yaml:1" in result.stderr


def test_a_terminal_that_knows_ascii_only_gets_what_it_can_show() -> None:
    code = (
        "import sys, trainkit.commands.app as c; sys.argv = ['trainkit', 'recipes', 'copy', 'é…']; "
        "c.main()"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 2
    assert rb"there is no recipe '\xe9\u2026'" in done.stderr


def test_a_wrong_value_is_repeated_in_its_own_letters(write: Write) -> None:
    _, _, problems = read_recipe(write("seed: é漢\n"))
    assert 'got "é漢"' in str(problems[-1]) or 'got "é漢"' in str(problems[0])
