"""Ask two claims of Zhang et al. 2020 of small models: does smoothness follow the gradient norm,
does clipping help?

Run: python benchmarks/grad_clip_study.py lstm
     python benchmarks/grad_clip_study.py resnet

The first trains the paper's kind of model, 4 settings and 5 seeds, in half a minute; the second
timm's test_resnet with SGD, 6 settings and 3 seeds, in some minutes.

Both read scikit-learn's digits. Numbers are means over seeds, with the standard deviation in
brackets.
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from trainkit_plugins.grad_clip import (
    clip_by_global_norm,
    fit_l0_l1,
    gradient_of,
    local_smoothness,
    snapshot,
)

from trainkit import History
from trainkit.errors import TrainingError
from trainkit.training.build import build, compose
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import fit

RECIPE = """\
model: {name: test_resnet, in_chans: 1}
data: {name: digits, image_size: 32, batch_size: 64}
train: {epochs: 5, device: cpu}
optimizer: {name: momentum, momentum: 0.0, lr: 0.1, weight_decay: 0}
scheduler: {name: constant, warmup_epochs: 0}
plugins: {grad_clip: {}, smoothness: {every: 2}}
"""


class Rows(nn.Module):
    """An LSTM that reads an 8 x 8 digit row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, 10] for images [N, 8, 8]."""
        return self.head(self.lstm(x)[0][:, -1])


def lstm(seed: int, lr: float, max_norm: float) -> list[float]:
    """Train 250 steps of SGD; return slope, correlation, mean loss of the last 30 steps, test
    accuracy.
    """
    torch.manual_seed(seed)
    bunch = load_digits()
    order = torch.randperm(len(bunch.target))
    x, y = (
        torch.tensor(bunch.images / 16, dtype=torch.float32)[order],
        torch.tensor(bunch.target)[order],
    )
    model = Rows()
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=lr)
    fixed = gradient_of(lambda: nn.functional.cross_entropy(model(x[:400]), y[:400]), params)
    losses, measured = [], []
    for step in range(250):
        batch = torch.randint(1400, (64,))
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        clip_by_global_norm(params, max_norm)
        start = snapshot(params)
        optimizer.step()
        if step % 5 == 4:
            measured.append(local_smoothness(fixed, params, start))
    found = fit_l0_l1(
        [m.gradient_norm.item() for m in measured], [m.smoothness.item() for m in measured]
    )
    with torch.no_grad():
        accuracy = (model(x[1400:]).argmax(1) == y[1400:]).float().mean().item()
    return [found.slope.value, found.pearson.value, statistics.fmean(losses[-30:]), accuracy]


def resnet(seed: int, lr: float, max_norm: float) -> list[float]:
    """Train 5 epochs; return slope, correlation, mean loss of the last epoch, validation
    accuracy, share clipped.
    """
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "recipe.yaml"
        path.write_text(RECIPE)
        limit = ".inf" if math.isinf(max_norm) else max_norm
        run = build(
            compose(
                path, [f"seed={seed}", f"optimizer.lr={lr}", f"plugins.grad_clip.max_norm={limit}"]
            ),
            Path(name),
        )
        try:
            fit(run, Checkpointer(None, run))
        except TrainingError:
            return [math.nan] * 5
        history = History.read(Path(name) / "metrics.jsonl")
    _, rows = history.together("smoothness/gradient_norm", "smoothness/smoothness")
    found = fit_l0_l1([g for g, _ in rows], [s for _, s in rows])
    clipped, losses = history.series("grad_clip/clipped")[1], history.series("loss")[1]
    last = losses[-run.data.train.steps_per_epoch :]
    accuracy = history.series("val/accuracy")[1][-1]
    return [
        found.slope.value,
        found.pearson.value,
        statistics.fmean(last),
        accuracy,
        statistics.fmean(clipped),
    ]


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation of the runs that did not diverge."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return "diverged"
    lost = f" {len(values) - len(finite)} diverged" if len(finite) < len(values) else ""
    return (
        f"{statistics.fmean(finite):.3f} "
        f"({statistics.stdev(finite) if len(finite) > 1 else math.nan:.3f}){lost}"
    )


def main() -> None:
    """Run the chosen study and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=["lstm", "resnet"])
    parser.add_argument("--seeds", type=int, help="default: 5 and 3")
    options = parser.parse_args()
    study = options.study
    torch.set_num_threads(1)
    if study == "lstm":
        runs, seeds = [(5.0, 0.25), (5.0, math.inf), (1.0, math.inf), (0.2, math.inf)], 5
        work, columns = lstm, ["slope", "correlation", "loss", "accuracy"]
    else:
        runs, seeds = [(lr, norm) for lr in (0.1, 1.0, 3.0) for norm in (0.5, math.inf)], 3
        work, columns = resnet, ["slope", "correlation", "loss", "accuracy", "clipped"]
    print(f"{'':<20}" + "".join(f"{c:>24}" for c in columns))
    for lr, max_norm in runs:
        rows = zip(
            *(work(seed, lr, max_norm) for seed in range(options.seeds or seeds)), strict=True
        )
        name = f"lr {lr:g}, " + ("no clipping" if math.isinf(max_norm) else f"clip {max_norm:g}")
        print(f"{name:<20}" + "".join(f"{spread(r):>24}" for r in rows), flush=True)


if __name__ == "__main__":
    main()
