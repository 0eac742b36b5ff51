"""The command line's front door: version, help, hints on common slips, what is measured, what is
listed.
"""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trainkit import Terminal, __version__
from trainkit.commands import app as cli
from trainkit.commands.app import app
from trainkit.commands.listing import show_all, show_one
from trainkit.config.recipe import read_recipe
from trainkit.hooks.discovery import command_summary, describe, installed

Write = Callable[..., Path]
SMALL = "model: {name: mlp, in_chans: 1}\ndata: {name: digits, image_size: 8}\n"
COMMANDS = [
    "train",
    "plan",
    "eval",
    "plugins",
    "recipes",
    "schema",
    "report",
    "cite",
    "verify-resume",
]


def said(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_version_is_one_line() -> None:
    assert said("--version") == f"trainkit {__version__}\n"


@pytest.mark.parametrize(
    "command", [(), *((command,) for command in COMMANDS), ("recipes", "copy")]
)
def test_short_and_long_help_are_the_same_everywhere(command: tuple[str, ...]) -> None:
    assert said(*command, "-h") == said(*command, "--help")


def test_a_shell_can_complete() -> None:
    assert "--install-completion" in said("-h")


def test_a_plugins_command_stands_in_the_help_with_what_it_does() -> None:
    (point,) = cli.entry_points(group="trainkit.commands")
    assert command_summary(point).startswith("Choose alpha, an example's weight")
    before = said("-h")
    assert "tune-bn" in CliRunner().invoke(cli.with_plugins(asked="train"), ["-h"]).output
    assert said("-h") == before, "the command line of a plugin went into everybody's"


# Slips.


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "plugins: [ema]",
            '3: plugins: should be a mapping; got ["ema"]; write `plugins: {ema: {}}`',
        ),
        (
            "plugins: radam",
            '3: plugins: should be a mapping; got "radam"; write `plugins: {radam: {}}`',
        ),
        ("plugins: {ema: true}", "`ema:` with nothing behind it switches the plugin on"),
        (
            "train: {loss: bce}",
            '3: train.loss: should be a mapping; got "bce"; did you mean train.loss.name?',
        ),
        ("scheduler: cosine", "did you mean scheduler.name?"),
        ("train: {compile: yes}", 'got "yes"; write true'),
        ("train: {compile: off}", 'got "off"; write false'),
        ("train: {epochs: '10'}", 'got "10"; leave the quotes out'),
        ("lr: 0.1", "3: lr: there is no such option; did you mean optimizer.lr?"),
        ("train: {lr: 0.1}", "3: train.lr: there is no such option; did you mean optimizer.lr?"),
        ("batch_size: 8", "did you mean data.batch_size?"),
        ("exends: base.yaml", "did you mean 'extends'?"),
        ("optimiser: {lr: 1}", "did you mean 'optimizer'?"),
        ("shceduler: {}", "did you mean 'scheduler'?"),
    ],
)
def test_a_common_slip_gets_what_was_meant(write: Write, line: str, message: str) -> None:
    _, _, problems = read_recipe(write(f"{SMALL}{line}\n"))
    assert any(message in str(problem) for problem in problems), [str(p) for p in problems]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=0.1", "lr: there is no such option; did you mean optimizer.lr?"),
        ("train.loss=bce", "did you mean train.loss.name?"),
        ("train.compile=on", "write true"),
        (
            "--lr=0.1",
            "there is no such option; a key is set without dashes, as in `optimizer.lr=0.1`",
        ),
    ],
)
def test_so_does_one_on_the_command_line(write: Write, override: str, message: str) -> None:
    result = CliRunner().invoke(app, ["cite", str(write(SMALL)), override])
    assert result.exit_code == 2
    assert message in result.stderr
    assert f"command line `{override}`" in result.stderr


def test_a_metric_under_the_name_it_is_logged_by(write: Write) -> None:
    result = CliRunner().invoke(app, ["plan", str(write(SMALL)), "checkpoint.metric=val/accuracy"])
    assert "does not measure 'val/accuracy'; did you mean 'accuracy'?" in result.stderr


# Lists.


def shown(width: int, show: Callable[[Terminal], None]) -> list[str]:
    file = StringIO()
    show(Terminal(file=file, width=width))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_plugins_are_listed_by_room_within_the_width(width: int) -> None:
    listings = [describe(point) for point in installed().values()]
    lines = shown(width, lambda out: show_all(listings, out))
    assert max(map(len, lines)) <= width
    words = " ".join(" ".join(lines).split())
    assert all(listing.summary in words and f" {listing.name} " in words for listing in listings)
    rooms = [line.split(" ")[0] for line in lines if line and not line.startswith((" ", "`"))]
    assert len(rooms) == len(set(rooms))
    radam = [line.split()[0] for line in lines[lines.index("radam (trainkit)") + 1 :] if line]
    assert {"adam_2k", "radam_monitor"} <= set(radam[:12])


def test_one_plugin_shows_hooks_and_every_option() -> None:
    lines = shown(80, lambda out: show_one("grad_clip", ("before_optimizer_step",), out))
    assert "hooks: before_optimizer_step" in lines
    assert any(line.startswith("max_norm: float") for line in lines)


# What is measured.


def test_eval_says_which_weights_and_which_data(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said("train", write(f"{SMALL}train: {{epochs: 1}}\n"), "--run-dir", folder)
    words = said("eval", folder)
    assert f"weights: {folder}/weights.safetensors (mlp)" in words
    assert "data: " in words
    assert "360 examples of validation" in words
    assert f"weights: {folder}/checkpoints/last.pt (mlp)" in said(
        "eval", folder, "--weights", "last"
    )


def test_a_wait_is_shown_on_a_terminal_only_and_taken_back() -> None:
    for terminal, wanted in ((True, ["loading torch …"]), (False, [])):
        file = StringIO()
        with Terminal(file=file, force_terminal=terminal, width=40).waiting("loading torch"):
            during = file.getvalue()
        assert [line.strip() for line in during.split("\r") if line.strip()] == wanted
        assert file.getvalue().endswith("\x1b[2K") is terminal
