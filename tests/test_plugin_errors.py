"""What a plugin gets wrong is said in one line: which plugin, which hook, and the line of its
file.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.reference.tiny import train, with_plugins
from trainkit import Plugin, UserError, hookimpl
from trainkit.commands.app import app
from trainkit.commands.plan import make_plan
from trainkit.errors import Interrupted, PluginError, TrainingError
from trainkit.hooks.entries import read_entries
from trainkit.log.records import Log
from trainkit.report.page import write_report
from trainkit.training.build import build
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import fit

HEAD = """\
import torch
from trainkit import Plugin, UserError, hookimpl


class Mine(Plugin):
    \"\"\"Does something wrong.\"\"\"

"""

WRONG: dict[str, tuple[str, str, str]] = {
    # The hook's code, in which !! is the wrong line; the hook; what is said of it.
    "a missing gradient": (
        """
        def before_optimizer_step(self, model):
            model.extra = torch.nn.Parameter(torch.zeros(2))
            for p in model.parameters():
                p.grad.mul_(1) !!
        """,
        "before_optimizer_step",
        (
            "AttributeError: 'NoneType' object has no attribute 'mul_'; a parameter that is frozen,"
            " or that no loss"
        ),
    ),
    "an iterator at its end": (
        """
        def prepare_batch(self, batch):
            return next(iter([])) !!
        """,
        "prepare_batch",
        "StopIteration",
    ),
    "an iterator at its end in a moment": (
        """
        def on_epoch_start(self):
            next(iter(())) !!
        """,
        "on_epoch_start",
        "StopIteration",
    ),
    "an iterator at its end in a wrapper": (
        """
        (wrapper=True)
        def compute_loss(self):
            loss = yield
            return loss * next(iter(())) !!
        """,
        "compute_loss",
        "StopIteration",
    ),
    "an iterator at its end before the yield": (
        """
        (wrapper=True)
        def build_model(self):
            next(iter(())) !!
            return (yield)
        """,
        "build_model",
        "StopIteration",
    ),
    "a call that fails far away": (
        """
        def evaluate_batch(self, model, batch):
            return model(torch.zeros(3)) !!
        """,
        "evaluate_batch",
        "Error: ",
    ),
    "a logged list": (
        """
        def after_optimizer_step(self, run):
            run.log.record("norms", [1.0, 2.0]) !!
        """,
        "after_optimizer_step",
        "TypeError: norms: only numbers and tensors can be logged, and this is a list: [1.0, 2.0]",
    ),
    "a logged dict": (
        """
        def on_fit_start(self, run):
            run.log.record("norms", {"a": 1}) !!
        """,
        "on_fit_start",
        "TypeError: norms: only numbers and tensors can be logged, and this is a dict: {'a': 1}",
    ),
    "a logged matrix": (
        """
        def before_optimizer_step(self, model, run):
            run.log.record("weights", torch.zeros(3, 4)) !!
        """,
        "before_optimizer_step",
        "ValueError: weights: a tensor of shape [3, 4] is too much for a log",
    ),
}


def plugin(write: Callable[..., Path], code: str) -> tuple[str, int]:
    """Write a plugin with this hook; return how a recipe names it, and the number of its wrong
    line.
    """
    lines = textwrap.dedent(code).strip().splitlines()
    mark = f"@hookimpl{lines.pop(0)}" if lines[0].startswith("(") else "@hookimpl"
    text = HEAD + textwrap.indent("\n".join([mark, *lines]), "    ") + "\n"
    wrong = next(i for i, line in enumerate(text.splitlines(), 1) if "!!" in line)
    return f"{write(text.replace(' !!', ''), 'mine.py')}:Mine", wrong


def recipe_with(tiny: Path, name: str) -> Path:
    tiny.write_text(f"{tiny.read_text()}  {name}: {{}}\n")
    return tiny


@pytest.mark.parametrize("case", WRONG)
def test_a_failing_hook_is_named_with_its_line(
    tiny: Path, write: Callable[..., Path], case: str
) -> None:
    code, hook, said = WRONG[case]
    name, line = plugin(write, code)
    with pytest.raises(PluginError) as caught:
        train(
            with_plugins(recipe_with(tiny, name), ["train.epochs=1", "scheduler.warmup_epochs=0"])
        )
    message = str(caught.value)
    assert re.match(rf"plugin Mine: {hook} failed at \S*mine\.py:{line} \(`.*`\): ", message)
    assert said in message
    assert message.endswith("(set TRAINKIT_TRACEBACK=1 to see the traceback)")
    assert "\n" not in message


ANSWERS: dict[str, tuple[str, Any, str]] = {
    "a number as loss": (
        "compute_loss",
        0.5,
        "a float; it must be the mean loss as a scalar tensor",
    ),
    "a loss per example": (
        "compute_loss",
        torch.ones(3),
        "a tensor of shape [3]; it must be a scalar: take its mean",
    ),
    "a loss of one element": (
        "compute_loss",
        torch.ones(1),
        "a tensor of shape [1]; it must be a scalar",
    ),
    "a constant loss": (
        "compute_criterion",
        torch.tensor(1.0),
        "a loss that depends on no parameter",
    ),
    "logits alone": (
        "evaluate_batch",
        torch.ones(3, 4),
        "a Tensor; it must be trainkit.Predictions(logits, targets)",
    ),
    "one group": (
        "build_param_groups",
        {"params": []},
        "a dict; it must be a list of dicts with `params`",
    ),
    "no model": ("build_model", "resnet18", "a str; it must be a torch.nn.Module"),
    "a scheduler of torch": (
        "build_scheduler",
        object(),
        "a object; it must be a scheduler (it has no step_update",
    ),
    "no optimizer": ("build_optimizer", torch.optim.SGD, "a type; it must be a torch optimizer"),
}


@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize("case", ANSWERS)
def test_a_wrong_answer_is_refused_where_it_is_given(tiny: Path, case: str, wraps: bool) -> None:
    hook, answer, said = ANSWERS[case]

    def provide(self):
        return answer

    def wrap(self):
        yield
        return answer

    method = hookimpl(wrapper=True)(wrap) if wraps else hookimpl(provide)
    mine = type("Mine", (Plugin,), {hook: method})()
    with pytest.raises(PluginError) as caught:
        train(with_plugins(tiny, ["train.epochs=1", "scheduler.warmup_epochs=0"], mine))
    assert str(caught.value).startswith(f"plugin Mine: {hook} returned {said}")
    assert re.search(r" \(tests/test_plugin_errors\.py:\d+\)$", str(caught.value))


@pytest.mark.parametrize(
    "error", [UserError("no"), TrainingError("no"), Interrupted(None), KeyboardInterrupt()]
)
def test_what_is_raised_on_purpose_goes_on_as_it_is(tiny: Path, error: BaseException) -> None:
    class Stops(Plugin):
        @hookimpl(wrapper=True)
        def compute_loss(self):
            yield
            raise error

    class Around(Plugin):
        @hookimpl(wrapper=True)
        def compute_loss(self):
            return (yield)

    run = build(with_plugins(tiny, [], Around(), Stops()))
    with pytest.raises(type(error)) as caught:
        fit(run, Checkpointer(None, run))
    assert caught.value is error


def test_the_plugin_that_raised_is_blamed_and_not_those_around_it(tiny: Path) -> None:
    class Around(Plugin):
        @hookimpl(wrapper=True)
        def prepare_batch(self):
            try:
                return (yield)
            finally:
                pass

    class Inner(Plugin):
        @hookimpl(wrapper=True)
        def prepare_batch(self):
            yield
            raise KeyError("left")

    with pytest.raises(
        PluginError, match=r"plugin Inner: prepare_batch failed at .*KeyError: 'left'"
    ):
        train(with_plugins(tiny, [], Around(), Inner()))


def test_core_is_not_taken_for_a_plugin(tiny: Path) -> None:
    class Around(Plugin):
        @hookimpl(wrapper=True)
        def compute_loss(self):
            return (yield)

    run = build(with_plugins(tiny, [], Around()))
    with pytest.raises(AttributeError, match="inputs"):
        run.hook.compute_loss(model=run.model, batch=None, run=run)


def test_the_state_is_asked_for_with_the_plugins_name(
    tiny: Path, write: Callable[..., Path]
) -> None:
    code = "def on_fit_start(self):\n    pass\n\ndef state_dict(self):\n    return {}[1] !!"
    name, line = plugin(write, code)
    with pytest.raises(
        PluginError, match=rf"plugin Mine: state_dict failed at \S*mine\.py:{line} .*KeyError: 1"
    ):
        train(with_plugins(recipe_with(tiny, name), []), tiny.parent)


@pytest.mark.parametrize("answer", ["one line", None, [1]])
def test_an_explanation_that_is_no_list_of_lines_is_refused(
    tiny: Path, write: Callable[..., Path], answer: object
) -> None:
    code = f"def on_fit_start(self):\n    pass\n\ndef explain(self, run):\n    return {answer!r} !!"
    name, _ = plugin(write, code)
    with pytest.raises(
        PluginError, match=re.escape(f"plugin Mine: explain returned {answer!r}; it must")
    ):
        make_plan(recipe_with(tiny, name), [])


def test_a_plugins_mistake_ends_with_exit_code_1_and_its_traceback_on_request(
    tiny: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, line = plugin(write, "def build_model(self):\n    return 1 / 0 !!")
    recipe_with(tiny, name)
    done = CliRunner().invoke(app, ["plan", str(tiny)])
    assert done.exit_code == 1
    assert f"mine.py:{line} (`return 1 / 0`): ZeroDivisionError: division by zero" in done.output
    assert "Traceback" not in done.output
    monkeypatch.setenv("TRAINKIT_TRACEBACK", "1")
    done = CliRunner().invoke(app, ["plan", str(tiny)])
    assert done.exit_code == 1
    assert 'mine.py", line' in done.output
    assert "Traceback" in done.output


def test_code_that_fails_while_a_plugin_is_made_is_named(
    tiny: Path, write: Callable[..., Path]
) -> None:
    code = "def model_post_init(self, context):\n    self.nothing['x'] !!"
    name, line = plugin(write, code.replace("self.nothing", "{}"))
    with pytest.raises(
        PluginError, match=rf"plugin Mine: making it failed at \S*mine\.py:{line} .*KeyError: 'x'"
    ):
        make_plan(recipe_with(tiny, name), [])


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("1 / 0", r'mine\.py", line {line}, in report[\s\S]*ZeroDivisionError: division by zero'),
        ("['a line']", "plugin Mine: report returned 'a line'; it must be trainkit.Section"),
    ],
)
def test_a_report_that_fails_loses_only_its_own_part(
    tiny: Path, write: Callable[..., Path], tmp_path: Path, returned: str, said: str
) -> None:
    name, line = plugin(
        write,
        "def on_fit_start(self):\n    pass\n\ndef report(self, history):\n    return "
        f"{returned} !!",
    )
    (tmp_path / "run").mkdir()
    (mine,) = [
        entry.plugin for entry in read_entries(recipe_with(tiny, name)) if entry.name == "Mine"
    ]
    page = html.unescape(write_report(tmp_path / "run", [mine]).read_text())
    assert re.search(said.replace("{line}", str(line)), page)


@pytest.mark.parametrize("value", ["0.5", b"1", None, [1.0], (1,), {"a": 1}, object(), 1j, 10**400])
def test_what_is_no_number_is_not_logged(value: Any) -> None:
    with pytest.raises(TypeError, match="what: only numbers and tensors can be logged"):
        Log().record("what", value)


@pytest.mark.parametrize("value", [torch.zeros(1025), torch.zeros(2, 1), torch.zeros(1, 1)])
def test_what_is_no_short_vector_is_not_logged(value: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="too much for a log"):
        Log().record("what", value)


def test_numbers_of_every_kind_are_logged() -> None:
    import numpy as np

    log = Log()
    values = [
        True,
        3,
        np.float32(0.5),
        np.int64(7),
        float("nan"),
        torch.tensor(True),
        torch.tensor([1, 2]),
    ]
    for i, value in enumerate(values):
        log.record(f"v{i}", value)
    log.commit(1, 0)
    (record,) = log.flush()
    assert list(record.values.values())[:4] == [1.0, 3.0, 0.5, 7.0]
    assert record.values["v4"] != record.values["v4"]
    assert (record.values["v5"], record.values["v6"]) == (1.0, [1.0, 2.0])
