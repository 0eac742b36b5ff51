"""The `ema` plugin, told by hand what happens in a run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from trainkit_plugins.ema import average_statistics
from trainkit_plugins.ema.plugin import Ema

from trainkit import Batch, Hooks, Run, UserError
from trainkit.config.recipe import Recipe
from trainkit.data.types import Data
from trainkit.log.records import Log
from trainkit.training.device import Device


@dataclass
class Stream:
    """Training data whose batches depend on the epoch alone; it counts what is read."""

    steps_per_epoch: int = 6
    read: int = 0

    def batches(self, epoch: int, position: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(self.steps_per_epoch):
            self.read += 1
            yield Batch(
                torch.randn(4, 2, 5, 5, generator=generator), torch.zeros(4, dtype=torch.int64)
            )


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(27, 2),
    )


def make_run(model: nn.Module, **train: Any) -> Run:
    recipe = Recipe.model_validate(
        {"model": {"name": "none"}, "data": {"name": "digits"}, "train": train}
    )
    run = Run(recipe, cast(Hooks, None), {}, Device(recipe), Log())
    run.model = model
    run.data = Data(cast(Any, Stream()), cast(Any, ()), 2, (2, 5, 5), "made up")
    return run


def step(run: Run, ema: Ema, seed: int) -> None:
    """Move every parameter and statistic as training would: in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in run.model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator))
            else:
                tensor.add_(1)
    run.step += 1
    ema.after_optimizer_step(run)
    run.log.commit(run.step, run.epoch)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def evaluated(run: Run, ema: Ema) -> dict[str, Tensor]:
    """Return what the model holds during a validation."""
    ema.on_evaluate_start(run.model, run)
    held = snapshot(run.model)
    ema.on_evaluate_end(run.model, run)
    return held


@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_the_average_is_the_formula_and_training_does_not_notice(buffers: Any) -> None:
    run, twin = make_run(network()), make_run(network())
    ema, nothing = Ema(decay=0.75, warmup=False, buffers=buffers), Ema()
    ema.on_fit_start(run)
    nothing.on_fit_start(twin)
    expected: dict[str, Tensor] = {}
    for seed in range(5):
        step(run, ema, seed)
        step(twin, nothing, seed)
        now = {k: v.double() for k, v in run.model.state_dict().items()}
        expected = {k: 0.75 * expected.get(k, v) + 0.25 * v for k, v in now.items()}
        held = evaluated(run, ema)
        for name, value in held.items():
            is_statistic = name.startswith("1.running") or name.endswith("tracked")
            wanted = expected[name] if not is_statistic or buffers == "average" else now[name]
            if name.endswith("tracked"):
                wanted = now[name]
            torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-6)
    assert same(snapshot(run.model), snapshot(twin.model))


def test_warm_up_follows_its_formula_and_is_logged() -> None:
    run = make_run(network())
    ema = Ema(decay=0.9, warmup_gamma=2.0, warmup_power=0.5, min_decay=0.25, start_step=2)
    ema.on_fit_start(run)
    for seed in range(250):
        step(run, ema, seed)
    decays = [record.values["ema/decay"] for record in run.log.flush()]
    # timm's count: the step at which following ends is itself still a copy.
    assert decays[:3] == [0.0, 0.0, 0.0]
    for t, decay in enumerate(decays[3:], start=1):
        assert decay == pytest.approx(max(0.25, min(0.9, 1 - (1 + t / 2.0) ** -0.5)), abs=1e-12)
    assert (decays[3], decays[-1]) == (0.25, 0.9)


def test_neutral_options_evaluate_the_trained_weights_bit_for_bit() -> None:
    run = make_run(network())
    ema = Ema(**Ema.neutral)
    ema.on_fit_start(run)
    for seed in range(3):
        step(run, ema, seed)
        with torch.no_grad():
            run.model[0].bias.fill_(-0.0)
        ema.after_optimizer_step(run)
        held = evaluated(run, ema)
        assert same(held, snapshot(run.model))
        assert bool(torch.signbit(held["0.bias"]).all())


def test_validation_gives_the_trained_values_back_in_the_same_tensors() -> None:
    run = make_run(network())
    ema = Ema(decay=0.5, warmup=False, buffers="average")
    ema.on_fit_start(run)
    for seed in range(3):
        step(run, ema, seed)
    before, addresses = snapshot(run.model), [p.data_ptr() for p in run.model.parameters()]
    assert not same(evaluated(run, ema), before)
    assert same(snapshot(run.model), before)
    assert [p.data_ptr() for p in run.model.parameters()] == addresses


def test_recompute_measures_the_averaged_weights_on_the_epochs_first_batches() -> None:
    run = make_run(network())
    ema = Ema(decay=0.5, warmup=False, buffers="recompute", recompute_batches=4)
    ema.on_fit_start(run)
    for seed in range(3):
        step(run, ema, seed)
    run.epoch = 2
    before, stream = snapshot(run.model), torch.get_rng_state()
    held = evaluated(run, ema)
    assert cast(Stream, run.data.train).read == 4
    assert same(snapshot(run.model), before)
    assert torch.equal(torch.get_rng_state(), stream)
    twin = network()
    twin.load_state_dict(held)
    batches = list(Stream().batches(2, 0))[:4]
    average_statistics(twin, [batch.inputs for batch in batches])
    assert same(twin.state_dict(), held)
    assert not torch.equal(held["1.running_mean"], before["1.running_mean"])


def test_recomputed_statistics_are_averaged_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, together = make_run(network()), make_run(network())
    monkeypatch.setattr(together.device, "world", 2)
    # The other rank, it is made out, measured 1 more everywhere.
    monkeypatch.setattr(together.device, "average", lambda values: [v + 0.5 for v in values])
    held = []
    for run in (alone, together):
        ema = Ema(decay=0.5, warmup=False, buffers="recompute")
        ema.on_fit_start(run)
        step(run, ema, 0)
        held.append(evaluated(run, ema))
    for name, value in held[0].items():
        shift = 0.5 if name in ("1.running_mean", "1.running_var") else 0
        torch.testing.assert_close(held[1][name], value + shift)


def test_recompute_leaves_frozen_layers_alone() -> None:
    run = make_run(network())
    run.model[1].eval()
    ema = Ema(decay=0.5, warmup=False, buffers="recompute")
    ema.on_fit_start(run)
    step(run, ema, 0)
    before = snapshot(run.model)
    held = evaluated(run, ema)
    assert torch.equal(held["1.running_mean"], before["1.running_mean"])
    assert run.model.training
    assert not run.model[1].training


def test_recompute_refuses_data_that_it_cannot_feed_to_the_model() -> None:
    run = make_run(network())
    cast(Any, run.data.train).batches = lambda epoch, position: iter([{"support": 1}])
    ema = Ema(buffers="recompute")
    ema.on_fit_start(run)
    with pytest.raises(UserError, match="these data give dict; use copy or average"):
        ema.on_evaluate_start(run.model, run)


@pytest.mark.slow  # importing torch's compiler takes seconds
def test_recompute_compiles_nothing() -> None:
    run, graphs = make_run(network(), compile=True), []
    run.model.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward)
    run.model(torch.zeros(4, 2, 5, 5))
    assert len(graphs) == 1
    ema = Ema(decay=0.5, warmup=False, buffers="recompute", recompute_batches=4)
    ema.on_fit_start(run)
    step(run, ema, 0)
    evaluated(run, ema)
    assert cast(Stream, run.data.train).read == 4
    assert len(graphs) == 1


@pytest.mark.parametrize("buffers", ["copy", "average", "recompute"])
def test_going_on_from_a_saved_state_is_exact(buffers: Any) -> None:
    run = make_run(network())
    ema = Ema(decay=0.9, buffers=buffers)
    ema.on_fit_start(run)
    for seed in range(4):
        step(run, ema, seed)
    saved, weights = ema.state_dict(), snapshot(run.model)
    resumed, again = make_run(network()), Ema(decay=0.9, buffers=buffers)
    resumed.model.load_state_dict(weights)
    again.load_state_dict(saved)
    again.on_fit_start(resumed)
    resumed.step = run.step
    for seed in range(4, 8):
        step(run, ema, seed)
        step(resumed, again, seed)
    assert same(evaluated(run, ema), evaluated(resumed, again))
    assert same(ema.state_dict()["average"], again.state_dict()["average"])


def test_state_is_the_average_also_during_validation_and_before_the_start() -> None:
    run = make_run(network())
    ema = Ema(decay=0.5, warmup=False)
    assert ema.state_dict() == {}
    ema.on_fit_start(run)
    for seed in range(3):
        step(run, ema, seed)
    saved = ema.state_dict()
    ema.on_evaluate_start(run.model, run)
    assert same(ema.state_dict()["average"], saved["average"])
    ema.on_evaluate_end(run.model, run)
    waiting = Ema()
    waiting.load_state_dict(saved)
    assert same(waiting.state_dict()["average"], saved["average"])


def test_replaced_parameters_are_refused() -> None:
    run = make_run(network())
    ema = Ema()
    ema.on_fit_start(run)
    run.model[0].weight = nn.Parameter(torch.zeros(3, 2, 3, 3))
    with pytest.raises(ValueError, match="write into them in place"):
        ema.on_evaluate_start(run.model, run)


def test_a_model_measured_without_training_is_left_alone() -> None:
    run = make_run(network())
    assert same(evaluated(run, Ema()), snapshot(run.model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, "decay"),
        ({"decay": -0.1}, "decay"),
        ({"min_decay": 0.5, "decay": 0.4}, "min_decay 0.5 is above decay 0.4"),
        ({"warmup_power": 0.0}, "warmup_power"),
        ({"buffers": "keep"}, "buffers"),
        ({"recompute_batches": 0}, "recompute_batches"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Ema(**options)


def test_plan_says_how_far_the_average_reaches() -> None:
    run = make_run(network(), epochs=10)
    weights, statistics = Ema(decay=0.9, warmup=False, buffers="recompute").explain(run)
    count = sum(p.numel() for p in run.model.parameters())
    assert (
        weights
        == f"averages {count:,} values; decay 0.9 at the last step (60): about the last 10 steps"
        " count"
    )
    assert (
        statistics
        == "statistics of 1 batch-norm layers: measured on 50 training batches before each"
        " validation"
    )
