"""The plugins of the cookbook: they conform, they are what their papers say, and they are right
everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import trainkit.testing
from tests.reference.tiny import train, with_plugins
from tests.test_distributed import COMMON, logged, on_two_ranks
from trainkit import Batch, History, Plugin, Run, hookimpl
from trainkit.hooks.discovery import load_class
from trainkit.testing import Case
from trainkit.training.build import build

FOLDER = Path(__file__).parents[1] / "docs" / "cookbook"
EXAMPLES: dict[str, dict[str, Any]] = {
    "sam.py:SAM": {"rho": 0.1},
    "r_drop.py:RDrop": {"alpha": 2.0},
    "gradient_noise.py:GradientNoise": {"eta": 0.1},
    "gradual_unfreezing.py:GradualUnfreezing": {},
    "layer_norms.py:LayerNorms": {"every": 2},
}
SGD = ["optimizer={name: sgd, lr: 0.1, momentum: 0.9}", "scheduler={name: constant}"]


def plugin(name: str, **options: Any) -> Plugin:
    cls: Any = load_class(f"{FOLDER}/{name}", Path())[1]
    return cls(**options)


class Double(Plugin):
    """Makes the model and its inputs float64."""

    @hookimpl(wrapper=True)
    def build_model(self) -> Any:
        model = yield
        model.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
        return model.double()


@trainkit.testing.parametrize(
    *(Case(f"{FOLDER}/{name}", options) for name, options in EXAMPLES.items())
)
def test_it_conforms(check: Any) -> None:
    check()


def test_every_example_has_forty_lines_at_most_and_is_on_the_page() -> None:
    page = (FOLDER / "index.md").read_text()
    files = sorted(FOLDER.glob("*.py"))
    assert [path.name for path in files] == sorted(name.partition(":")[0] for name in EXAMPLES)
    for path in files:
        assert len(path.read_text().splitlines()) <= 40
        assert f'--8<-- "docs/cookbook/{path.name}"' in page


@pytest.mark.parametrize("accumulate", [1, 3])
def test_sam_is_the_step_written_by_hand(tiny: Path, accumulate: int) -> None:
    batches: list[Batch] = []
    windows: list[list[Batch]] = []

    class Keeps(Plugin):
        @hookimpl(wrapper=True)
        def prepare_batch(self) -> Any:
            batches.append((yield))
            return batches[-1]

        @hookimpl
        def after_optimizer_step(self) -> None:
            windows.append(batches.copy())
            batches.clear()

    overrides = [
        "train.epochs=1",
        f"train.accumulate={accumulate}",
        *SGD,
        "optimizer.weight_decay=0",
    ]
    setup = with_plugins(tiny, overrides, plugin("sam.py:SAM", rho=0.1), Double(), Keeps())
    run, _ = train(setup)
    twin = build(with_plugins(tiny, overrides, Double())).model.train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for window in windows:
        inputs, targets = (torch.cat(parts) for parts in zip(*window, strict=True))
        _sam_by_hand(twin, optimizer, inputs, targets, rho=0.1)
    for found, wanted in zip(run.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def _sam_by_hand(
    model: nn.Module, optimizer: Any, inputs: torch.Tensor, targets: torch.Tensor, rho: float
) -> None:
    """Algorithm 1 of Foret et al.: eps = rho * g / |g|, and the step is along the gradient at w
    + eps.
    """
    worst = copy.deepcopy(model)
    gradient = torch.autograd.grad(cross_entropy(model(inputs), targets), list(model.parameters()))
    norm = torch.cat([g.flatten() for g in gradient]).norm()
    with torch.no_grad():
        for p, g in zip(worst.parameters(), gradient, strict=True):
            p.add_(rho * g / norm)
    there = torch.autograd.grad(cross_entropy(worst(inputs), targets), list(worst.parameters()))
    for p, g in zip(model.parameters(), there, strict=True):
        p.grad = g
    optimizer.step()


def test_r_drop_is_the_papers_formula(tiny: Path) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    class Sees(Plugin):
        @hookimpl(wrapper=True)
        def compute_criterion(self, output: torch.Tensor, batch: Batch) -> Any:
            loss = yield
            seen.append((output.detach(), batch.targets, loss.detach()))
            return loss

    model = "model={name: test_vit, args: {drop_rate: 0.5}}"
    setup = with_plugins(tiny, [model], Sees(), Double(), plugin("r_drop.py:RDrop", alpha=3.0))
    train(setup, until=2)
    for output, targets, loss in seen:
        n = len(targets) // 2
        (p, q), y = output.softmax(1).split(n), targets[:n]
        assert torch.equal(targets[n:], y)
        assert not torch.equal(p, q)  # another mask
        wanted = 0.0
        for i in range(n):
            nll = -p[i, y[i]].log() - q[i, y[i]].log()
            kl = sum(a * (a / b).log() + b * (b / a).log() for a, b in zip(p[i], q[i], strict=True))
            wanted += float(nll / 2 + 3.0 * kl / 2) / n
        assert float(loss) == pytest.approx(wanted, rel=1e-12)


def test_r_drop_doubles_what_mixup_has_mixed(tiny: Path) -> None:
    tiny.write_text(f"{tiny.read_text()}  mixup: {{}}\n  {FOLDER}/r_drop.py:RDrop: {{}}\n")
    run = build(with_plugins(tiny, []))
    batch = run.hook.prepare_batch(batch=next(run.data.train.batches(0, 0)), run=run)
    assert len(batch.inputs) == 8
    assert torch.equal(batch.inputs[:4], batch.inputs[4:])
    assert batch.targets.ndim == 2


def test_the_noise_has_the_variance_of_the_paper(tiny: Path) -> None:
    before: list[torch.Tensor] = []
    deviations = []

    class First(Plugin):
        @hookimpl
        def before_optimizer_step(self, model: nn.Module) -> None:
            before[:] = [p.grad.clone() for p in model.parameters()]

    class Last(Plugin):
        @hookimpl
        def before_optimizer_step(self, model: nn.Module) -> None:
            noise = [p.grad - g for p, g in zip(model.parameters(), before, strict=True)]
            deviations.append(float(torch.cat([n.flatten() for n in noise]).std()))

    noisy = plugin("gradient_noise.py:GradientNoise", eta=4.0, gamma=1.0)
    train(
        with_plugins(tiny, ["train.epochs=1", "scheduler.warmup_epochs=0"], First(), noisy, Last())
    )
    assert deviations == pytest.approx([2 / (1 + t) ** 0.5 for t in range(6)], rel=0.02)


def test_one_layer_more_thaws_every_two_epochs(tiny: Path) -> None:
    seen = []

    class Sees(Plugin):
        @hookimpl
        def after_optimizer_step(self, model: nn.Module, run: Run) -> None:
            trains = {
                name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None
            }
            if not seen or seen[-1][1] != trains:
                seen.append((run.epoch, trains))

    thaws = plugin("gradual_unfreezing.py:GradualUnfreezing", every=2)
    overrides = ["model={name: test_resnet}", "train.epochs=6", "data.batch_size=11"]
    run, _ = train(with_plugins(tiny, overrides, thaws, Sees()))
    assert seen == [(0, {"fc"}), (2, {"fc", "layer4"}), (4, {"fc", "layer4", "layer3"})]
    (line,) = thaws.explain(run)
    counts = [int(n.replace(",", "")) for n in line.partition(": ")[2].split(", ")]
    assert counts[0] == counts[1] == sum(p.numel() for p in run.model.fc.parameters())
    assert len(set(counts)) == 3


def test_the_norms_are_logged_and_drawn(tiny: Path, tmp_path: Path) -> None:
    norms = plugin("layer_norms.py:LayerNorms", every=2)
    norms.bind("layer_norms", 0)
    run, _ = train(
        with_plugins(tiny, ["train.epochs=1", "scheduler.warmup_epochs=0"], norms), tmp_path
    )
    history = History.read(tmp_path / "metrics.jsonl")
    steps, values = history.series("layer_norms/head.weight")
    assert steps == [1, 3, 5]
    assert all(value > 0 for value in values)
    (section,) = norms.report(history)
    assert len(section.figures[0].axes[0].lines) == sum(p.ndim > 1 for p in run.model.parameters())
    assert norms.report(History(())) == []


# Rounding differs between one sum and two halves of it, and noise is drawn in the same order on
# every rank.
EVERYWHERE = [
    "sam.py:SAM",
    "r_drop.py:RDrop",
    "gradient_noise.py:GradientNoise",
    "gradual_unfreezing.py:GradualUnfreezing",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_two_ranks_match_one_with_the_same_global_batch(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    tiny.write_text(
        f"{tiny.read_text()}  {FOLDER}/{name}: {_written(EXAMPLES[name])}\n  grad_clip: {{}}\n"
    )
    two = on_two_ranks(
        tiny, tmp_path / "two", "data.batch_size=4", "train.accumulate=2", "train.epochs=3"
    )
    one = tmp_path / "one"
    one.mkdir()
    run, _ = train(
        with_plugins(tiny, [*COMMON, "data.batch_size=8", "train.accumulate=2", "train.epochs=3"]),
        one,
    )
    first, second = (rank["weights"] for rank in two)
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key, tensor in run.model.state_dict().items():
        torch.testing.assert_close(first[key], tensor, rtol=1e-4, atol=2e-6)
    for value in ("loss", "grad_clip/norm_before"):
        assert logged(tmp_path / "two", value) == pytest.approx(logged(one, value), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_ranks_resume_exactly(tiny: Path, tmp_path: Path, name: str, precision: str) -> None:
    tiny.write_text(f"{tiny.read_text()}  {FOLDER}/{name}: {_written(EXAMPLES[name])}\n")
    overrides: Sequence[str] = [
        "model={name: test_resnet, args: {drop_rate: 0.2}}",
        f"train.precision={precision}",
        "data.batch_size=2",
        "train.accumulate=2",
    ]
    through = on_two_ranks(tiny, tmp_path / "whole", *overrides)
    on_two_ranks(tiny, tmp_path / "stopped", *overrides, until=4)
    resumed = on_two_ranks(tiny, tmp_path / "stopped", *overrides)
    assert all(
        torch.equal(t, resumed[0]["weights"][key]) for key, t in through[0]["weights"].items()
    )
    assert all(
        torch.equal(t, through[1]["weights"][key]) or "running" in key
        for key, t in through[0]["weights"].items()
    )


def _written(options: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in options.items()) + "}"
