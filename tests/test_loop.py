"""The loop does what a hand-written one does, to the bit, and what its switches say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from tests.reference.tiny import Made, train, with_plugins
from trainkit import Batch, Plugin, Predictions, Recorder, Run, hookimpl
from trainkit.errors import UserError
from trainkit.seeds import derive_seed, seed_everything
from trainkit.training.build import build, compose
from trainkit.training.loop import evaluate

CONSTANT = ["scheduler.name=constant", "scheduler.warmup_epochs=0"]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def with_losses(tiny: Path, *overrides: str) -> tuple[Run, list[float]]:
    recorder = Recorder()
    run, _ = train(compose(tiny, overrides), observers=[recorder])
    return run, recorder.history.series("loss")[1]


# Against a loop written by hand.


def by_hand(
    name: str, epochs: int, smoothing: float = 0.0, **arguments: Any
) -> tuple[nn.Module, list[float]]:
    """Train as the tiny recipe says, in plain PyTorch; return the model and the loss of every
    step.
    """
    seed_everything(derive_seed(3, "model"))
    try:
        model = timm.create_model(name, num_classes=4, img_size=32, **arguments)
    except TypeError:
        model = timm.create_model(name, num_classes=4, **arguments)
    free = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    decay = [p for n, p in model.named_parameters() if p.ndim > 1 and n not in free]
    rest = [p for n, p in model.named_parameters() if p.ndim <= 1 or n in free]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    examples = [Made(22, 4, (3, 32, 32))[i] for i in range(22)]
    images, targets = torch.stack([x for x, _ in examples]), torch.tensor([t for _, t in examples])
    torch.manual_seed(derive_seed(3, "fit", 0))
    losses = []
    for epoch in range(epochs):
        model.train()
        generator = torch.Generator().manual_seed(
            derive_seed(derive_seed(3, "data"), "order", epoch)
        )
        for index in torch.randperm(22, generator=generator).split(4):
            loss = nn.functional.cross_entropy(
                model(images[index]), targets[index], label_smoothing=smoothing
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize(
    ("name", "arguments", "smoothing"),
    [
        ("test_vit", {}, 0.0),
        ("test_vit", {"drop_rate": 0.3, "drop_path_rate": 0.2}, 0.1),
        ("test_resnet", {}, 0.0),
    ],
)
def test_an_empty_recipe_is_a_hand_written_loop_bit_for_bit(
    tiny: Path, name: str, arguments: dict[str, float], smoothing: float
) -> None:
    model, losses = by_hand(name, 2, smoothing, **arguments)
    overrides = [
        f"model={{name: {name}, args: {arguments or '{}'}}}",
        f"train.loss.smoothing={smoothing}",
        *CONSTANT,
    ]
    run, found = with_losses(tiny, *overrides)
    assert found == losses
    assert identical(weights(run.model), weights(model))


def test_validation_counts_examples_not_batches(tiny: Path) -> None:
    # 10 examples in batches of 4 end with a batch of 2, which must not weigh as much as the others.
    run, checkpointer = train(with_plugins(tiny, ["train.epochs=1", *CONSTANT]))
    run.model.eval()
    examples = [Made(10, 4, (3, 32, 32), first=22)[i] for i in range(10)]
    targets = np.array([target for _, target in examples])
    with torch.no_grad():
        logits = run.model(torch.stack([image for image, _ in examples])).double().numpy()
    shifted = logits - logits.max(1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    bins = np.digitize(confidence, np.linspace(0, 1, 16)[1:-1])
    gaps = [
        abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean()
        for b in set(bins)
    ]
    assert checkpointer.outcome.final == {
        "accuracy": pytest.approx(right.mean(), abs=1e-7),
        "nll": pytest.approx(-np.log(probabilities[np.arange(10), targets]).mean(), rel=1e-6),
        "calibration_error": pytest.approx(sum(gaps), rel=1e-5),
    }
    assert 0 < right.mean() < 1  # a model that is always right would prove nothing


def test_top_5_is_measured_where_there_are_more_classes(tiny: Path) -> None:
    data = "validation: 13, classes: 9"
    key = next(iter(compose(tiny).recipe.plugins))
    run, checkpointer = train(
        with_plugins(tiny, [f"plugins={{{key}: {{{data}}}}}", "train.epochs=1", *CONSTANT])
    )
    run.model.eval()
    examples = [Made(13, 9, (3, 32, 32), first=22)[i] for i in range(13)]
    with torch.no_grad():
        best = run.model(torch.stack([image for image, _ in examples])).topk(5).indices
    targets = torch.tensor([target for _, target in examples])
    assert checkpointer.outcome.final["top5"] == pytest.approx(
        (best == targets[:, None]).any(1).double().mean().item()
    )


# Windows.


class Sizes(Plugin):
    """Counts micro-batches and steps."""

    _seen: list[int | str]

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        self._seen = []

    @hookimpl(wrapper=True)
    def compute_loss(self, batch: Batch) -> Any:
        self._seen.append(len(batch.targets))
        return (yield)

    @hookimpl
    def after_optimizer_step(self) -> None:
        self._seen.append("step")


def test_an_accumulated_window_is_one_batch_also_when_it_is_short(tiny: Path) -> None:
    # 22 examples: a window of 16 and one of 6; in micro-batches of 4: 4 + 4 + 4 + 4 and 4 + 2.
    sgd = ["optimizer={name: sgd, lr: 0.1, weight_decay: 0}", "train.epochs=1", *CONSTANT]
    sizes = Sizes()
    cut, _ = train(with_plugins(tiny, ["data.batch_size=4", "train.accumulate=4", *sgd], sizes))
    whole, _ = train(with_plugins(tiny, ["data.batch_size=16", *sgd]))
    assert sizes._seen == [4, 4, 4, 4, "step", 4, 2, "step"]
    assert (cut.step, whole.step) == (2, 2)
    start = build(with_plugins(tiny, sgd)).model
    assert distance(start, whole.model) > 1e-2
    assert distance(cut.model, whole.model) < 2e-6


def test_the_logged_loss_is_the_mean_over_the_window(tiny: Path) -> None:
    # The first loss of each run is taken at the same weights, on the same 16 examples.
    short = ["train.epochs=1", *CONSTANT]
    _, cut = with_losses(tiny, *short, "data.batch_size=4", "train.accumulate=4")
    _, whole = with_losses(tiny, *short, "data.batch_size=16", "train.accumulate=1")
    assert cut[0] == pytest.approx(whole[0], rel=1e-6)


# Precision.


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_computes_in_it_and_keeps_weights_whole(tiny: Path, precision: str) -> None:
    seen = []

    class Look(Plugin):
        @hookimpl
        def before_optimizer_step(self, model: nn.Module, run: Run) -> None:
            seen.append(next(model.parameters()).grad.dtype)
            assert run.device.scaler.is_enabled() == (precision == "fp16")

    class Types(Plugin):
        @hookimpl(wrapper=True)
        def build_model(self) -> Any:
            model = yield
            model.head.register_forward_hook(lambda *args: seen.append(args[2].dtype))
            return model

    low, checkpointer = train(
        with_plugins(tiny, [f"train.precision={precision}", *CONSTANT], Look(), Types())
    )
    whole, _ = train(with_plugins(tiny, CONSTANT))
    assert set(seen) == {torch.float32, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    assert {p.dtype for p in low.model.parameters()} == {torch.float32}
    assert 0 < distance(low.model, whole.model) < 0.1
    assert math.isfinite(checkpointer.outcome.final["nll"])


def test_gradients_are_unscaled_before_plugins_see_them(tiny: Path) -> None:
    norms: dict[str, list[float]] = {"fp16": [], "fp32": []}

    class Norm(Plugin):
        @hookimpl
        def before_optimizer_step(self, model: nn.Module, run: Run) -> None:
            squares = sum(p.grad.double().square().sum() for p in model.parameters())
            norms[run.recipe.train.precision].append(float(squares) ** 0.5)

    # The weights hardly move, so the two runs see the same gradients, apart from steps that
    # overflow in fp16.
    still = ["optimizer.lr=1e-9", "optimizer.weight_decay=0", *CONSTANT]
    for precision in norms:
        train(with_plugins(tiny, [f"train.precision={precision}", *still], Norm()))
    pairs = [
        (low, whole)
        for low, whole in zip(norms["fp16"], norms["fp32"], strict=True)
        if math.isfinite(low)
    ]
    assert len(pairs) >= 6
    assert all(low == pytest.approx(whole, rel=0.02) for low, whole in pairs)


def test_a_step_with_overflown_gradients_is_left_out_and_the_scale_lowered(tiny: Path) -> None:
    before: dict[str, Any] = {}

    class Overflow(Plugin):
        @hookimpl
        def before_optimizer_step(self, model: nn.Module, run: Run) -> None:
            if run.step == 2:
                before.update(weights=weights(model), scale=run.device.scaler.get_scale())
                next(model.parameters()).grad[:] = math.inf
                # The scaler has looked already; look again, as the first time.
                run.device.scaler._per_optimizer_states.clear()
                run.device.scaler.unscale_(run.optimizer)

        @hookimpl
        def after_optimizer_step(self, model: nn.Module, run: Run) -> None:
            if run.step == 3:
                assert identical(weights(model), before["weights"])
                assert run.device.scaler.get_scale() == before["scale"] / 2

    run, _ = train(with_plugins(tiny, ["train.precision=fp16", *CONSTANT], Overflow()))
    assert run.step == 12


# Other switches.


def test_memory_format_changes_no_result_beyond_rounding(tiny: Path) -> None:
    formats = []

    class Look(Plugin):
        @hookimpl(wrapper=True)
        def compute_loss(self, model: nn.Module, batch: Batch) -> Any:
            formats.append(batch.inputs.is_contiguous(memory_format=torch.channels_last))
            kernel = next(p for p in model.parameters() if p.ndim == 4 and min(p.shape) > 1)
            formats.append(kernel.is_contiguous(memory_format=torch.channels_last))
            return (yield)

    sgd = ["model.name=test_resnet", "optimizer={name: sgd, lr: 0.01}", "train.epochs=1", *CONSTANT]
    last, _ = train(with_plugins(tiny, ["train.channels_last=true", *sgd], Look()))
    first, _ = train(with_plugins(tiny, sgd))
    assert formats
    assert all(formats)
    assert distance(last.model, first.model) < 1e-4


def test_checkpointed_activations_give_the_same_gradients(tiny: Path) -> None:
    dropout = ["model.args={drop_rate: 0.2, proj_drop_rate: 0.2}", "train.epochs=1", *CONSTANT]
    saving, _ = train(with_plugins(tiny, ["train.grad_checkpointing=true", *dropout]))
    plain, _ = train(with_plugins(tiny, dropout))
    assert saving.model.grad_checkpointing
    assert identical(weights(saving.model), weights(plain.model))


def test_a_model_without_checkpointing_says_so(tiny: Path) -> None:
    with pytest.raises(
        UserError, match=r"train\.grad_checkpointing: timm's \S+ does not offer it; set false"
    ):
        build(compose(tiny, ["model.name=inception_v4", "train.grad_checkpointing=true"]))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_compiled_model_trains_as_the_plain_one(
    tiny: Path, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is compiled is torch's business; that the host compiles and still names every weight as
    # timm does is ours.
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    run, _ = train(
        with_plugins(tiny, ["train.compile=true", f"train.accumulate={accumulate}", *CONSTANT])
    )
    assert compiled == ["VisionTransformer"]
    assert not [name for name in run.model.state_dict() if "_orig_mod" in name]


def test_sync_batchnorm_is_refused_where_torch_has_none(tiny: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"command line `train\.sync_batchnorm=true`: train\.sync_batchnorm: torch has it on "
        "CUDA only; set it to false",
    ):
        build(compose(tiny, ["train.sync_batchnorm=true"]))


def test_a_device_that_is_not_there_is_refused(tiny: Path) -> None:
    with pytest.raises(
        UserError, match=r"train\.device: there is no cuda:99 here \(CUDA devices: \d+\)"
    ):
        build(compose(tiny, ["train.device=cuda:99"]))


# Validation and training apart.


def test_how_often_is_validated_changes_nothing(tiny: Path) -> None:
    dropout = ["model={name: test_resnet, args: {drop_rate: 0.2}}", "train.epochs=4", *CONSTANT]
    often, _ = train(with_plugins(tiny, dropout))
    seldom, checkpointer = train(with_plugins(tiny, ["train.evaluate_every=3", *dropout]))
    assert identical(weights(often.model), weights(seldom.model))
    assert [entry["epoch"] for entry in checkpointer.outcome.best] in ([2], [3])


def test_validation_may_draw_random_numbers_of_its_own(tiny: Path) -> None:
    drawn = []

    class Draws(Plugin):
        @hookimpl(wrapper=True)
        def evaluate_batch(self) -> Any:
            drawn.append(torch.rand(3).tolist())
            return (yield)

    dropout = ["model.args={drop_rate: 0.2}", *CONSTANT]
    with_draws, _ = train(with_plugins(tiny, dropout, Draws()))
    without, _ = train(with_plugins(tiny, dropout))
    assert identical(weights(with_draws.model), weights(without.model))
    first, second = drawn[:3], drawn[3:]
    assert len(first) == len(second) == 3
    assert first != second  # each validation has a stream of its own
    before, drawn = drawn, []
    train(with_plugins(tiny, dropout, Draws()))
    assert drawn == before


def test_validation_leaves_every_module_in_its_mode(tiny: Path) -> None:
    class Frozen(Plugin):
        @hookimpl
        def on_epoch_start(self, run: Run) -> None:
            run.model.norm.eval()

        @hookimpl
        def on_evaluate_end(self, model: nn.Module) -> None:
            assert not model.norm.training
            assert model.blocks.training

        @hookimpl(wrapper=True)
        def evaluate_batch(self, model: nn.Module) -> Any:
            assert not any(module.training for module in model.modules())
            return (yield)

    run, _ = train(with_plugins(tiny, CONSTANT, Frozen()))
    assert not run.model.norm.training
    assert run.model.training


def test_predictions_go_to_the_metrics_whoever_makes_them(tiny: Path) -> None:
    class Oracle(Plugin):
        @hookimpl
        def evaluate_batch(self, batch: Batch) -> Predictions:
            return Predictions(nn.functional.one_hot(batch.targets, 4).float() * 50, batch.targets)

    run = build(with_plugins(tiny, [], Oracle()))
    metrics = evaluate(run)
    assert metrics["accuracy"] == 1
    assert metrics["nll"] < 1e-6


class EpochsTold:
    """A schedule that notes what it is told at the end of an epoch."""

    def __init__(self) -> None:
        self.told: list[tuple[int, float | None]] = []

    def step_update(self, num_updates: int) -> None:
        """Leave the rates as they are."""

    def step(self, epoch: int, metric: float | None = None) -> None:
        self.told.append((epoch, metric))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was kept."""


def test_the_loop_steps_the_schedule_and_evaluation_does_not(tiny: Path) -> None:
    schedule = EpochsTold()

    class Scheduled(Plugin):
        @hookimpl
        def build_scheduler(self) -> EpochsTold:
            return schedule

    overrides = ["train.epochs=3", "train.evaluate_every=2"]
    run, checkpointer = train(with_plugins(tiny, overrides, Scheduled()))
    assert [epoch for epoch, _ in schedule.told] == [2, 3]
    assert schedule.told[-1][1] == checkpointer.outcome.final["accuracy"]
    evaluate(run, checkpointer)
    assert len(schedule.told) == 2
