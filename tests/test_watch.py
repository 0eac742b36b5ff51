"""No number that is not finite is trained on unseen, and none reaches a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from tests.reference.spoilt import INF, NAN, OFTEN, SGD, failed, saved
from tests.reference.tiny import train, with_plugins
from trainkit import Batch, Plugin, Run, hookimpl
from trainkit.errors import PluginError
from trainkit.training.build import build
from trainkit.training.checkpoint import read_state
from trainkit.training.checkpointer import Checkpointer


class SpoilGradient(Plugin):
    """Makes one entry of one gradient useless at one step; the loss stays finite."""

    at: int = Field(5, description="step")
    value: float = Field(NAN, description="what the entry becomes")

    @hookimpl
    def before_optimizer_step(self, model: nn.Module, run: Run) -> None:
        if run.step + 1 == self.at:
            gradient = model.get_parameter("blocks.1.attn.proj.weight").grad
            assert gradient is not None
            gradient.view(-1)[3] = self.value


# Gradients.


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("overrides", [OFTEN, [*OFTEN, "train.accumulate=2", "data.batch_size=2"]])
def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    overrides: list[str],
    at_once: bool,
) -> None:
    monkeypatch.setattr("trainkit.checks.watch.at_hand", lambda device: at_once)
    said = failed(tiny, tmp_path, overrides, SpoilGradient(value=value))
    last = tmp_path / "checkpoints" / "last.pt"
    assert said.startswith(
        f"the gradient of blocks.1.attn.proj.weight is {abs(value)} at step 5 (epoch 1, batch 4: "
    )
    assert f" while the loss is finite; last good checkpoint: {last} (step 4). " in said
    assert saved(tmp_path)["step"] == 4


@pytest.mark.parametrize("step", [6, 12])
def test_nor_at_the_last_step_of_an_epoch_or_a_run(tiny: Path, tmp_path: Path, step: int) -> None:
    assert f"at step {step} " in failed(tiny, tmp_path, [], SpoilGradient(at=step))
    if step == 12:
        assert saved(tmp_path)["step"] == 6
    else:
        assert not list(tmp_path.rglob("*.pt"))
        assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("at_once", "what"),
    [
        (True, "parameter blocks.1.attn.proj.weight became nan"),
        (False, "the gradient of blocks.1.attn.proj.weight is nan"),
    ],
)
def test_the_first_bad_step_is_named_though_later_losses_are_bad_too(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool, what: str
) -> None:
    monkeypatch.setattr("trainkit.checks.watch.at_hand", lambda device: at_once)
    said = failed(tiny, tmp_path, ["train.log_every=6"], SpoilGradient(at=2))
    assert said.startswith(f"{what} at step 2 (epoch 1, batch 1: ")
    assert " while the loss is finite; " in said


def test_the_step_that_spoilt_weights_is_named_though_the_next_loss_tells(
    tiny: Path, tmp_path: Path
) -> None:
    said = failed(tiny, tmp_path, ["train.log_every=100"], SpoilLoss(weights=True, at=4))
    assert said.startswith("parameter head.weight became inf at step 4 (epoch 1, batch 3: ")


def test_a_gradient_too_large_for_its_norm_is_finite(tiny: Path, tmp_path: Path) -> None:
    class Large(Plugin):
        @hookimpl
        def before_optimizer_step(self, model: nn.Module, optimizer: Any) -> None:
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 1e30)
            for group in optimizer.param_groups:
                group["lr"] = 1e-33

    run, _ = train(with_plugins(tiny, SGD, Large()), tmp_path)
    assert run.step == 12


# What fails because of it.


class Decomposes(Plugin):
    """Fails by itself on numbers that are not finite, as torch's decompositions do."""

    hook: str = Field("after", description="where it does so")

    @hookimpl
    def before_optimizer_step(self, model: nn.Module) -> None:
        if self.hook == "before":
            torch.linalg.svdvals(model.get_parameter("head.weight").grad)  # type: ignore[arg-type]

    @hookimpl
    def after_optimizer_step(self, model: nn.Module) -> None:
        if self.hook == "after":
            torch.linalg.svdvals(model.get_parameter("head.weight"))

    @hookimpl
    def on_evaluate_end(self, model: nn.Module) -> None:
        if self.hook == "evaluate":
            torch.linalg.svdvals(model.get_parameter("head.weight"))


class SpoilLoss(Plugin):
    """Makes the loss NaN at a step, or the weights."""

    at: int = Field(3, description="step")
    weights: bool = Field(False, description="the weights, after the step")

    @hookimpl(wrapper=True)
    def compute_loss(self, run: Run) -> Any:
        loss = yield
        return loss * NAN if run.step + 1 == self.at and not self.weights else loss

    @hookimpl
    def after_optimizer_step(self, model: nn.Module, run: Run) -> None:
        if run.step == self.at and self.weights:
            with torch.no_grad():
                model.get_parameter("head.weight").fill_(INF)


@pytest.mark.parametrize("hook", ["before", "after"])
def test_a_plugin_that_fails_on_nan_gives_way_to_where_it_came_from(
    tiny: Path, tmp_path: Path, hook: str
) -> None:
    late = "train.log_every=100"
    assert failed(tiny, tmp_path, [late], SpoilLoss(), Decomposes(hook=hook)).startswith(
        "the loss is nan at step 3 "
    )


def test_also_where_only_the_weights_tell(tiny: Path, tmp_path: Path) -> None:
    said = failed(tiny, tmp_path, [], SpoilLoss(weights=True), Decomposes())
    assert said.startswith(
        "parameter head.weight holds inf after step 3 (epoch 1); last good checkpoint: none yet. "
    )
    said = failed(
        tiny, tmp_path / "late", [], SpoilLoss(weights=True, at=6), Decomposes(hook="evaluate")
    )
    assert said.startswith("parameter head.weight holds inf after step 6 (epoch 1); ")


def test_what_fails_for_another_reason_says_so_itself(tiny: Path, tmp_path: Path) -> None:
    class Fails(Plugin):
        @hookimpl
        def after_optimizer_step(self, run: Run) -> None:
            if run.step == 4:
                raise ZeroDivisionError("of its own")

    with pytest.raises(Exception, match="of its own"):
        train(with_plugins(tiny, SGD, Fails()), tmp_path)


# Losses.


class Shaped(Plugin):
    """Returns its loss in another form."""

    form: str = Field(description="which")

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Any:
        loss = yield
        forms = {
            "one": lambda: loss.reshape(1),
            "rows": lambda: loss.expand(3, 1),
            "complex": lambda: torch.complex(loss, loss),
            "whole": lambda: loss.long(),
            "number": loss.item,
        }
        return forms[self.form]()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("form", "why"),
    [
        ("one", r"a tensor of shape \[1\]; it must be a scalar: take its mean"),
        ("rows", r"a tensor of shape \[3, 1\]; it must be a scalar"),
        ("complex", r"a tensor of torch\.complex64; it must be a real floating-point number"),
        ("whole", r"a tensor of torch\.int64; it must be a real floating-point number"),
        ("number", r"a float; it must be the mean loss as a scalar tensor"),
    ],
)
def test_a_loss_that_is_no_real_scalar_is_refused_by_its_plugin(
    tiny: Path, form: str, why: str, accumulate: int
) -> None:
    with pytest.raises(PluginError, match=f"plugin Shaped: compute_loss returned {why}"):
        train(with_plugins(tiny, [*SGD, f"train.accumulate={accumulate}"], Shaped(form=form)))


def test_who_provides_a_loss_is_named_before_who_wraps_it(tiny: Path) -> None:
    class Provides(Plugin):
        @hookimpl
        def compute_loss(self, model: nn.Module, batch: Batch) -> Tensor:
            return nn.functional.cross_entropy(model(batch.inputs), batch.targets, reduction="none")

    with pytest.raises(
        PluginError, match=r"plugin Provides: compute_loss returned a tensor of shape \[4\]"
    ):
        train(with_plugins(tiny, SGD, Provides(), Shaped(form="one")))


# What is saved.


class Keeps(Plugin):
    """Keeps a state that becomes what it is told at a step."""

    at: int = Field(3, description="step")
    _value: Any = PrivateAttr(default=1.0)
    _later: Any = PrivateAttr(default=None)

    @hookimpl
    def after_optimizer_step(self, run: Run) -> None:
        if run.step == self.at:
            self._value = self._later

    def state_dict(self) -> dict[str, Any]:
        if isinstance(self._value, Exception):
            raise self._value
        return {"seen": [0, self._value]}


def keeps(later: Any, *, at: int = 3) -> Keeps:
    plugin = Keeps(at=at)
    plugin._later = later
    if at == 0:
        plugin._value = later
    return plugin


@pytest.mark.parametrize(
    ("later", "what"),
    [(torch.tensor([1.0, NAN]), "holds nan"), (torch.tensor(INF), "holds inf"), (NAN, "is nan")],
)
def test_a_plugin_state_that_is_no_number_is_not_saved(
    tiny: Path, tmp_path: Path, later: Any, what: str
) -> None:
    said = failed(tiny, tmp_path, OFTEN, keeps(later))
    assert re.search(
        rf"plugins\.Keeps: its state_dict\(\)\['seen'\]\[1\] {what} after step 3 \(epoch 1\); ",
        said,
    )
    assert "last.pt (step 2). " in said
    assert saved(tmp_path)["step"] == 2


def test_an_infinite_number_may_be_the_best_so_far(tiny: Path, tmp_path: Path) -> None:
    train(with_plugins(tiny, [*SGD, *OFTEN], keeps(-INF)), tmp_path)
    assert saved(tmp_path)["plugins"]["Keeps"] == {"seen": [0, -INF]}


@pytest.mark.parametrize(
    ("later", "what"),
    [
        ({1, (2, frozenset())}, r"\['seen'\]\[1\] is of type set"),
        (Path("x"), r"\['seen'\]\[1\] is of type pathlib\.\S*Path"),
        (torch.Generator(), r"\['seen'\]\[1\] is of type torch\._C\.Generator"),
    ],
)
@pytest.mark.parametrize("at", [0, 3])
def test_a_state_that_could_not_be_read_back_is_refused(
    tiny: Path, tmp_path: Path, later: Any, what: str, at: int
) -> None:
    with pytest.raises(
        PluginError, match=rf"plugins\.Keeps: its state_dict\(\){what}, which can be saved but not"
    ):
        train(with_plugins(tiny, [*SGD, *OFTEN], keeps(later, at=at)), tmp_path)
    if at:
        assert saved(tmp_path)["step"] == 2
    else:
        assert not (tmp_path / "checkpoints" / "last.pt").exists()


@pytest.mark.parametrize("at", [0, 3])
def test_a_state_that_cannot_be_had_names_the_plugin(tiny: Path, tmp_path: Path, at: int) -> None:
    with pytest.raises(
        PluginError, match=r"plugin Keeps: state_dict failed at .*: KeyError: 'there is none'"
    ):
        train(with_plugins(tiny, [*SGD, *OFTEN], keeps(KeyError("there is none"), at=at)), tmp_path)
    assert (tmp_path / "checkpoints" / "last.pt").exists() == bool(at)


def test_the_state_of_a_plugins_own_optimizer_and_schedule_must_be_readable_too(
    tiny: Path, tmp_path: Path
) -> None:
    class Odd(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["home"] = Path("x")
            return super().step(closure)

    class Own(Plugin):
        @hookimpl
        def build_optimizer(self, param_groups: Any) -> torch.optim.Optimizer:
            return Odd(param_groups, lr=0.1)

    with pytest.raises(
        PluginError,
        match=r"the optimizer Odd: its state_dict\(\)\['param_groups'\]\[0\]\['home'\] is",
    ):
        train(with_plugins(tiny, [*SGD[1:], *OFTEN], Own()), tmp_path)

    class Schedule(Plugin):
        @hookimpl(wrapper=True)
        def build_scheduler(self) -> Any:
            scheduler = yield
            scheduler.shape = lambda step: 0.5**step
            return scheduler

    with pytest.raises(
        PluginError, match=r"the scheduler \w+: its state_dict\(\)\['shape'\] is of type function"
    ):
        train(with_plugins(tiny, SGD, Schedule()), tmp_path)


def test_what_a_plugin_says_is_saved_as_text(tiny: Path, tmp_path: Path) -> None:
    class Says(Plugin):
        @hookimpl
        def on_epoch_end(self, run: Run) -> None:
            run.log.note(Path("here"))  # type: ignore[arg-type]
            run.stop(ValueError("enough"))  # type: ignore[arg-type]

    train(with_plugins(tiny, SGD, Says()), tmp_path)
    state = saved(tmp_path)
    assert (state["stop_reason"], state["log"]["notes"]) == ("enough", ["here"])


def test_whatever_else_is_saved_is_looked_at_too(tiny: Path, tmp_path: Path) -> None:
    class Sets(Plugin):
        @hookimpl
        def on_epoch_end(self, run: Run) -> None:
            run.stop_reason = Path("here")  # type: ignore[assignment]

    with pytest.raises(
        PluginError, match=r"the run: its state_dict\(\)\['stop_reason'\] is of type pathlib"
    ):
        train(with_plugins(tiny, SGD, Sets()), tmp_path)


class SpoilState(Plugin):
    """Writes infinity somewhere at a step, or into what validation sees."""

    what: str = Field(description="buffer, momentum or average")

    @hookimpl
    def after_optimizer_step(self, model: nn.Module, run: Run) -> None:
        if run.step == 3 and self.what == "buffer":
            model.get_buffer("bn1.running_var")[0] = INF
        if run.step == 3 and self.what == "momentum":
            first = next(iter(run.optimizer.state))
            run.optimizer.state[first]["momentum_buffer"].view(-1)[0] = NAN

    @hookimpl
    def on_evaluate_start(self, model: nn.Module, run: Run) -> None:
        if run.epoch == 1 and self.what == "average":
            with torch.no_grad():
                model.get_parameter("conv1.0.weight").view(-1)[0] = NAN


@pytest.mark.parametrize(
    ("what", "said", "step"),
    [
        ("buffer", "buffer bn1.running_var holds inf after step 3 (epoch 1); ", 2),
        (
            "momentum",
            "['momentum_buffer'] holds nan for conv1.0.weight after step 3 (epoch 1); ",
            2,
        ),
        ("average", "parameter conv1.0.weight holds nan after step 12 (epoch 2); ", 11),
    ],
)
def test_statistics_optimizer_states_and_averages_are_finite_or_from_before(
    tiny: Path, tmp_path: Path, what: str, said: str, step: int
) -> None:
    assert said in failed(tiny, tmp_path, ["model.name=test_resnet", *OFTEN], SpoilState(what=what))
    assert saved(tmp_path)["step"] == step


def test_a_constant_may_be_infinite(tiny: Path, tmp_path: Path) -> None:
    class Masked(Plugin):
        @hookimpl(wrapper=True)
        def build_model(self) -> Any:
            model = yield
            model.register_buffer("mask", torch.tensor([0.0, -INF]))
            return model

    run, _ = train(with_plugins(tiny, SGD, Masked()), tmp_path)
    assert run.step == 12
    assert read_state(tmp_path / "checkpoints" / "last.pt")["model"]["mask"].tolist() == [0.0, -INF]


def test_weights_that_are_not_finite_are_not_trained_from(tiny: Path, tmp_path: Path) -> None:
    class Broken(Plugin):
        @hookimpl(wrapper=True)
        def build_model(self) -> Any:
            model = yield
            nn.init.constant_(model.head.bias, NAN)
            return model

    assert failed(tiny, tmp_path, [], Broken()).startswith(
        "parameter head.bias holds nan after step 0 "
    )


# The best weights.


def test_a_metric_that_is_not_finite_never_ranks_above_one_that_is(
    tiny: Path, tmp_path: Path
) -> None:
    run = build(with_plugins(tiny, ["checkpoint.keep_best=3"]), tmp_path)
    checkpointer = Checkpointer(tmp_path, run)
    for run.epoch, value in enumerate([NAN, INF, 0.25, NAN, 0.5]):
        checkpointer.save_if_best(run, {"accuracy": value})
    assert [entry["epoch"] for entry in checkpointer.outcome.best] == [4, 2, 0]
