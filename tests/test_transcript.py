"""What plugins see of a run: every hook in its order, and who is blamed when an answer is
missing.
"""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference.tiny import train, with_plugins
from trainkit import Hooks, Plugin, Run, hookimpl
from trainkit.errors import PluginError
from trainkit.training.build import build

VALUES = [
    "build_data",
    "build_model",
    "build_param_groups",
    "build_optimizer",
    "build_scheduler",
    "build_metrics",
    "select_trainable",
    "prepare_batch",
    "compute_loss",
    "compute_output",
    "compute_criterion",
    "evaluate_batch",
]
MOMENTS = [name for name in vars(Hooks) if not name.startswith("_") and name not in VALUES]


def talker(name: str, transcript: list[str]) -> Plugin:
    """Return a plugin of that name which writes down each call: `>` before and `<` after the
    value is there.
    """

    def tells(hook: str) -> Any:
        def tell(self):
            transcript.append(f"{name} {hook}")

        return hookimpl(tell)

    def wraps(hook: str) -> Any:
        def wrap(self):
            transcript.append(f"{name}> {hook}")
            answer = yield
            transcript.append(f"{name}< {hook}")
            return answer

        return hookimpl(wrapper=True)(wrap)

    body = {hook: tells(hook) for hook in MOMENTS} | {hook: wraps(hook) for hook in VALUES}
    return type(name, (Plugin,), body)()


def test_the_whole_transcript_of_two_steps(tiny: Path) -> None:
    transcript: list[str] = []
    plugins = [talker(name, transcript) for name in "ABC"]
    data = "plugins={DATA: {training: 8, validation: 3}}".replace(
        "DATA", next(iter(_plugins(tiny)))
    )
    overrides = [
        data,
        "train.epochs=1",
        "data.batch_size=2",
        "train.accumulate=2",
        "train.log_every=1",
    ]
    train(with_plugins(tiny, [*overrides, "scheduler.warmup_epochs=0"], *plugins))

    step = [
        *["prepare_batch", "compute_loss"] * 2,
        "before_optimizer_step",
        "after_optimizer_step",
        "on_log",
    ]
    hooks = [
        "build_data",
        "build_model",
        "build_param_groups",
        "build_optimizer",
        "build_scheduler",
        "build_metrics",
        "on_fit_start",
        "on_epoch_start",
        "select_trainable",
        *step,
        *step,
        "on_evaluate_start",
        *["evaluate_batch"] * 2,
        "on_best",
        "on_evaluate_end",
        "on_log",
        "on_epoch_end",
        "on_fit_end",
    ]
    expected = []
    for hook in hooks:
        if hook in MOMENTS:
            expected += [f"A {hook}", f"B {hook}", f"C {hook}"]
        else:
            expected += asked(
                hook, ["compute_output", "compute_criterion"] if hook == "compute_loss" else []
            )
    assert transcript == expected


def asked(hook: str, within: Sequence[str] = ()) -> list[str]:
    """Return what three talkers write down of a value hook whose default asks for further ones."""
    inner = [line for further in within for line in asked(further)]
    return [
        *(f"{who} {hook}" for who in ("A>", "B>", "C>")),
        *inner,
        *(f"{who} {hook}" for who in ("C<", "B<", "A<")),
    ]


def _plugins(recipe: Path) -> dict[str, Any]:
    from trainkit.config.raw import read_raw

    plugins: dict[str, Any] = read_raw(recipe).data["plugins"]
    return plugins


def test_the_epoch_is_not_started_twice_and_ends_with_its_own_number(tiny: Path) -> None:
    seen = []

    class Watch(Plugin):
        @hookimpl
        def on_epoch_start(self, run: Run) -> None:
            seen.append(("start", run.epoch, run.step))

        @hookimpl
        def on_epoch_end(self, run: Run) -> None:
            seen.append(("end", run.epoch, run.step))

    train(with_plugins(tiny, [], Watch()))
    assert seen == [("start", 0, 0), ("end", 0, 6), ("start", 1, 6), ("end", 1, 12)]


def test_gradients_are_final_before_the_step_and_parameters_moved_after_it(tiny: Path) -> None:
    before: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    steps = []

    class Watch(Plugin):
        @hookimpl
        def before_optimizer_step(self, model, run):
            before[:] = [p.detach().clone() for p in model.parameters()]
            gradients[:] = [p.grad.clone() for p in model.parameters()]
            assert run.step == len(steps)

        @hookimpl
        def after_optimizer_step(self, model, batch, loss, run):
            steps.append(run.step)
            assert run.step == len(steps)
            assert any(
                not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)
            )
            assert all(
                torch.equal(g, p.grad) for g, p in zip(gradients, model.parameters(), strict=True)
            )
            assert loss.shape == ()
            assert not loss.requires_grad
            assert len(batch.targets) == (2 if run.step % 6 == 0 else 4)

    train(with_plugins(tiny, [], Watch()))
    assert steps == list(range(1, 13))


def failure(tiny: Path, plugin: Plugin) -> str:
    """Return what training says of a plugin's mistake, without the place in this file that it
    ends with.
    """
    with pytest.raises(PluginError) as caught:
        train(with_plugins(tiny, [], plugin))
    message, _, line = str(caught.value).rpartition(" (tests/test_transcript.py:")
    assert "@hookimpl" in linecache.getline(__file__, int(line.rstrip(")")))
    return message


def test_a_provider_that_answers_nothing_is_named(tiny: Path) -> None:
    class Forgetful(Plugin):
        @hookimpl
        def compute_loss(self, model, batch): ...

    assert (
        failure(tiny, Forgetful())
        == "plugin Forgetful: compute_loss returned None; it must return the value it provides"
    )


def test_a_wrapper_that_drops_the_value_is_named(tiny: Path) -> None:
    class Dropper(Plugin):
        @hookimpl(wrapper=True)
        def build_model(self):
            yield

    assert (
        failure(tiny, Dropper())
        == "plugin Dropper: build_model returned None; a wrapper must return what it makes of"
        " `yield`"
    )


def test_a_wrapper_that_does_not_yield_is_named(tiny: Path) -> None:
    class Lazy(Plugin):
        @hookimpl(wrapper=True)
        def prepare_batch(self, batch, run):
            if run.step < 0:
                yield
            return batch

    assert (
        failure(tiny, Lazy())
        == "plugin Lazy: the wrapper prepare_batch ended before its `yield`; it must yield once"
    )


def test_a_wrapper_that_yields_twice_is_named(tiny: Path) -> None:
    class Twice(Plugin):
        @hookimpl(wrapper=True)
        def build_optimizer(self):
            yield
            return (yield)

    assert (
        failure(tiny, Twice())
        == "plugin Twice: the wrapper build_optimizer yields a second time; it must yield once"
    )


def test_core_that_answers_nothing_is_named_too(tiny: Path) -> None:
    class Empty:
        @hookimpl(trylast=True)
        def build_model(self):
            return None

    from trainkit.hooks.manager import make_manager

    manager, _ = make_manager([], Empty())
    with pytest.raises(PluginError, match="plugin core: build_model returned None"):
        manager.hook.build_model(recipe=None, run=None)


def test_a_wrapper_sees_what_the_provider_raises_and_may_put_things_back(tiny: Path) -> None:
    seen = []

    class Tidy(Plugin):
        @hookimpl(wrapper=True)
        def build_model(self):
            try:
                return (yield)
            finally:
                seen.append("put back")

    class Failing(Plugin):
        @hookimpl
        def build_model(self):
            raise RuntimeError("no model today")

    with pytest.raises(PluginError, match="no model today"):
        build(with_plugins(tiny, [], Tidy(), Failing()))
    assert seen == ["put back"]


def test_a_wrapper_may_answer_in_place_of_a_provider_that_fails(tiny: Path) -> None:
    class Rescue(Plugin):
        @hookimpl(wrapper=True)
        def build_param_groups(self, model):
            try:
                return (yield)
            except RuntimeError:
                return [{"params": list(model.parameters()), "name": "all"}]

    class Failing(Plugin):
        @hookimpl
        def build_param_groups(self):
            raise RuntimeError("no groups")

    run = build(with_plugins(tiny, [], Rescue(), Failing()))
    assert [group["name"] for group in run.optimizer.param_groups] == ["all"]


def test_the_first_plugin_of_the_recipe_is_the_outermost(tiny: Path) -> None:
    class Plus(Plugin):
        @hookimpl(wrapper=True)
        def compute_loss(self):
            return (yield) + 1

    class Times(Plugin):
        @hookimpl(wrapper=True)
        def compute_loss(self):
            return (yield) * 2

    class Zero(Plugin):
        @hookimpl
        def compute_loss(self, model, batch):
            return model(batch.inputs).sum() * 0

    losses = {}
    for order in ([Plus(), Times()], [Times(), Plus()]):
        run = build(with_plugins(tiny, [], *order, Zero()))
        batch = run.hook.prepare_batch(batch=next(run.data.train.batches(0, 0)), run=run)
        loss = run.hook.compute_loss(model=run.model, batch=batch, run=run)
        losses[type(order[0]).__name__] = loss.item()
    assert losses == {"Plus": 1.0, "Times": 2.0}


def test_runs_in_one_process_share_nothing(tiny: Path) -> None:
    calls = []

    class Count(Plugin):
        @hookimpl
        def on_fit_end(self):
            calls.append(self.name)

    train(with_plugins(tiny, ["train.epochs=1", "scheduler.warmup_epochs=0"], Count()))
    train(with_plugins(tiny, ["train.epochs=1", "scheduler.warmup_epochs=0"]))
    assert calls == ["Count"]
