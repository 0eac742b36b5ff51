"""The training aids in real runs of a timm model: trained, killed, resumed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from trainkit_plugins.early_stopping.plugin import EarlyStopping
from trainkit_plugins.ema.plugin import Ema
from trainkit_plugins.loggers.plugin import TensorBoard, Wandb
from trainkit_plugins.mixup.plugin import Mixup

from trainkit import Plugin, Run, hookimpl
from trainkit.config.recipe import Recipe
from trainkit.data.loader import Images, OrderedStream, ShuffledStream
from trainkit.data.types import Data
from trainkit.errors import Interrupted, Location, UserError
from trainkit.hooks.order import Entry
from trainkit.log.history import History
from trainkit.testing import Case, parametrize
from trainkit.training.build import Setup, build
from trainkit.training.checkpoint import read_state
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import fit

Plugins = dict[str, Plugin]


class Stripes:
    """Images of horizontal or vertical stripes in noise: two classes that are learnt in a few
    steps.
    """

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        stripes = (torch.arange(32) // 4 % 2).float().expand(1, 32, 32)
        noise = torch.randn(count, 1, 32, 32, generator=generator)
        self.images = [image + (stripes if i % 2 else stripes.mT) for i, image in enumerate(noise)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], index % 2


class StripesData(Plugin):
    """Provides 45 training images in batches of 8 (over all ranks) and 40 to validate on."""

    @hookimpl
    def build_data(self, recipe: Recipe, run: Run) -> Data:
        """Return the data."""
        train, val = (
            Images(Stripes(n, seed), lambda x: x, None, cache=True)
            for n, seed in ((45, 0), (40, 1))
        )
        share = {"rank": run.device.rank, "world": run.device.world}
        size = 8 // run.device.world
        stream = ShuffledStream(
            train, seed=0, batch_size=size, accumulate=recipe.train.accumulate, **share
        )
        return Data(stream, OrderedStream(val, batch_size=40, **share), 2, (1, 32, 32), "stripes")


def make(plugins: Plugins, folder: Path | None, **sections: Any) -> tuple[Run, Checkpointer]:
    """Build a run of 6 micro-batches an epoch, the last of 5 images."""
    recipe = Recipe.model_validate(
        {
            "model": {"name": "test_resnet", "in_chans": 1, "args": {"drop_rate": 0.2}},
            "data": {"name": "digits"},
            "train": {"epochs": 2},
            **sections,
        }
    )
    plugins = {"data": StripesData(), **plugins}
    for name, plugin in plugins.items():
        plugin.bind(name, recipe.seed)
    entries = [Entry(name, plugin, Location("recipe.yaml", 1)) for name, plugin in plugins.items()]
    run = build(Setup(recipe, entries), folder)
    return run, Checkpointer(run.folder, run)


def state(run: Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def train(
    plugins: Plugins, folder: Path | None = None, **sections: Any
) -> tuple[Run, Checkpointer]:
    run, checkpointer = make(plugins, folder, **sections)
    fit(run, checkpointer)
    return run, checkpointer


def test_the_data_end_in_an_odd_batch() -> None:
    run, _ = make({}, None)
    assert [len(batch.targets) for batch in run.data.train.batches(0, 0)] == [8, 8, 8, 8, 8, 5]


@pytest.mark.parametrize("buffers", ["copy", "average", "recompute"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_averaging_leaves_training_alone_and_changes_what_is_validated(
    buffers: Any, precision: str
) -> None:
    spec = {"epochs": 2, "precision": precision}
    plain, kept = train({}, train=spec)
    run, checkpointer = train(
        {"ema": Ema(decay=0.8, buffers=buffers, recompute_batches=2)}, train=spec
    )
    assert same(state(run), state(plain))
    assert checkpointer.outcome.final["nll"] != kept.outcome.final["nll"]


def test_the_kept_weights_are_the_average(tmp_path: Path) -> None:
    ema = Ema(decay=0.8)
    train({"ema": ema}, tmp_path, train={"epochs": 1})
    kept, average = load_file(tmp_path / "weights.safetensors"), ema.state_dict()["average"]
    assert average.keys() <= kept.keys()
    assert all(torch.equal(kept[name], value) for name, value in average.items())
    last = read_state(tmp_path / "checkpoints" / "last.pt")["model"]
    assert not any(
        torch.equal(last[name], average[name]) for name in ("conv1.0.weight", "fc.weight")
    )


def aids() -> Plugins:
    """Every aid at once, those with a choice taking the harder way."""
    return {
        "mixup": Mixup(cutmix_alpha=1.0, prob=0.8, mode="pair"),
        "ema": Ema(decay=0.8, buffers="recompute", recompute_batches=2),
        "early_stopping": EarlyStopping(patience=2),
        "tensorboard": TensorBoard(),
    }


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags: Sequence[str] = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize(("accumulate", "stop"), [(1, 3), (1, 6), (2, 4)])
def test_killed_and_resumed_equals_never_stopped(
    accumulate: int, stop: int, tmp_path: Path
) -> None:
    spec = {"train": {"epochs": 2, "accumulate": accumulate, "log_every": 1}}
    whole, kept = train(aids(), tmp_path / "whole", **spec)
    folder = tmp_path / "killed"
    first, checkpointer = make(aids(), folder, **spec)
    with pytest.raises(Interrupted):
        fit(first, checkpointer, until=stop)
    saved = Path(shutil.copy(folder / "checkpoints" / "last.pt", tmp_path))
    for _ in (
        "goes on and logs, but is killed before it can save",
        "takes the same steps again, to the end",
    ):
        run, checkpointer = make(aids(), folder, **spec)
        checkpointer.restore(run, read_state(saved))
        fit(run, checkpointer)
    assert same(state(run), state(whole))
    assert (checkpointer.outcome.best, run.stop_reason) == (kept.outcome.best, whole.stop_reason)
    assert same(
        run.plugins["ema"].state_dict()["average"], whole.plugins["ema"].state_dict()["average"]
    )
    assert (
        run.plugins["early_stopping"].state_dict() == whole.plugins["early_stopping"].state_dict()
    )
    assert scalars(folder) == scalars(tmp_path / "whole")


def test_tensorboard_has_every_number_of_the_log(tmp_path: Path) -> None:
    train({"tensorboard": TensorBoard()}, tmp_path)
    history, written = History.read(tmp_path / "metrics.jsonl"), scalars(tmp_path)
    assert {"loss", "val/accuracy"} <= set(history.names) == written.keys() - {"epoch"}
    for name in history.names:
        steps, values = history.series(name)
        assert [step for step, _ in written[name]] == steps
        assert [value for _, value in written[name]] == pytest.approx(values, rel=1e-6)


def test_it_stops_when_validation_gets_no_better() -> None:
    stopping = EarlyStopping(patience=2, min_delta=1.0)  # no accuracy is 1.0 above another
    run, _ = train({"early_stopping": stopping}, train={"epochs": 8})
    assert (run.epoch, run.step) == (3, 18)
    assert run.stop_reason.startswith("early_stopping: accuracy has not got better than 0.")


def test_an_unknown_metric_is_refused_before_the_first_step() -> None:
    run, checkpointer = make({"early_stopping": EarlyStopping(metric="acuracy", mode="max")}, None)
    with pytest.raises(UserError, match="does not measure 'acuracy'"):
        fit(run, checkpointer)
    assert run.step == 0


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_mixed_labels_train_with_every_loss_that_takes_them(loss: str) -> None:
    mixed, _ = train({"mixup": Mixup(mixup_alpha=1.0)}, train={"epochs": 1, "loss": {"name": loss}})
    plain, _ = train({}, train={"epochs": 1, "loss": {"name": loss}})
    assert all(value.isfinite().all() for value in state(mixed).values())
    assert not same(state(mixed), state(plain))


RANKS = """
import sys
import torch
import torch.distributed as dist
from test_training_aids import Ema, Mixup, make
from trainkit import Plugin, hookimpl
from trainkit.training.loop import fit

class Compare(Plugin):
    @hookimpl
    def on_evaluate_end(self, model):
        for name, value in model.state_dict().items():
            theirs = value.clone()
            dist.broadcast(theirs, 0)
            assert torch.equal(theirs, value), name

for buffers in ("copy", "average", "recompute"):
    ema = Ema(decay=0.8, buffers=buffers, recompute_batches=2)
    plugins = {"compare": Compare(), "mixup": Mixup(mixup_alpha=1.0), "ema": ema}
    run, checkpointer = make(plugins, None)
    fit(run, checkpointer)
    losses = run.device.gather(checkpointer.outcome.final["nll"])
    assert losses[0] == losses[1], losses
    assert run.step == 12, run.step
dist.destroy_process_group()
print("all equal")
"""


@pytest.mark.slow
def test_two_ranks_validate_the_same_average(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), str(here.parent / "plugins")])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all equal") == 2


@parametrize(
    Case(Ema, {"decay": 0.9}),
    Case(Ema, {"decay": 0.9, "buffers": "recompute", "recompute_batches": 2}),
    Case(Mixup, {"cutmix_alpha": 1.0, "mode": "pair"}),
    Case(EarlyStopping, {"patience": 1, "min_delta": 1.0}),
    Case(TensorBoard),
    Case(Wandb, {"mode": "disabled"}),
)
def test_conforms(check: Callable[[], None]) -> None:
    check()
