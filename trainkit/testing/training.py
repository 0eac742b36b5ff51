"""The small training that the checks look at: a few digits, a tiny timm model, two epochs of
three steps.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from trainkit.config.recipe import Recipe
from trainkit.data.digits import DigitsSource
from trainkit.data.image_data import Splits, image_data
from trainkit.data.types import Data
from trainkit.errors import Interrupted
from trainkit.hooks.recorder import Recorder
from trainkit.hooks.run import Run
from trainkit.hooks.specs import hookimpl
from trainkit.log.history import History
from trainkit.log.records import Record
from trainkit.seeds import rng_state, set_rng_state
from trainkit.training.build import Setup, build
from trainkit.training.checkpoint import read_state, run_state
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import fit

TINY: dict[str, Any] = {
    "seed": 0,
    # Dropout makes a run sensitive to anybody who draws from torch's global stream.
    "model": {"name": "test_resnet", "in_chans": 1, "args": {"drop_rate": 0.1}},
    "data": {"name": "digits", "image_size": 32, "batch_size": 8, "drop_last": True},
    "train": {"epochs": 2, "device": "cpu"},
}
"""The recipe on which a plugin is checked, as far as its author gives none."""

TRAINING, VALIDATION = 27, 17
"""Images of the kit's digits: three batches of 8 and a short one of 3; two of 8 and a single
image.
"""

State = dict[str, Any]


@dataclass(frozen=True)
class Trace:
    """What a run did and left behind.

    Attributes:
        state: the exact state after training, as in a checkpoint; copied.
        records: everything that was logged, in order.
        history: the same, as a report reads it back from the run folder.
        said: what else there is to see: notes and the names of the files in the run folder.
        steps_per_epoch: optimizer steps in an epoch.
        best: of a run that kept its files: the best weights, and the entry of the list of best ones
            about them.
    """

    state: State
    records: tuple[Record, ...]
    history: History
    said: frozenset[str]
    steps_per_epoch: int
    best: tuple[dict[str, torch.Tensor], dict[str, Any]] | None

    @property
    def names(self) -> frozenset[str]:
        """The name of every value that was logged."""
        return frozenset(name for record in self.records for name in record.values)


class FewDigits:
    """Provides the first few of scikit-learn's digits, where no plugin provides data."""

    @hookimpl
    def build_data(self, recipe: Recipe, run: Run) -> Data:
        """Answer with `TRAINING` and `VALIDATION` images."""
        spec = recipe.data
        assert isinstance(spec, DigitsSource)  # `make` asks this of no other
        return image_data(_splits(), spec, recipe, run.device)


@functools.cache
def _splits() -> Splits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.rint(bunch.images[: TRAINING + VALIDATION] * (255 / 16)).astype(np.uint8)
    examples = [
        (Image.fromarray(image), int(target))
        for image, target in zip(grey, bunch.target, strict=False)
    ]
    mean, std = float(grey.mean()) / 255, float(grey.std()) / 255
    return Splits(examples[:TRAINING], examples[TRAINING:], 10, (mean,), (std,), fits=True)


def make(setup: Setup, folder: Path | None = None, observers: Sequence[object] = ()) -> Run:
    """Build a run; a recipe that names the digits gets a few of them."""
    digits = [FewDigits()] if isinstance(setup.recipe.data, DigitsSource) else []
    return build(setup, folder, [*observers, *digits])


def train(
    setups: Callable[[], Setup],
    *,
    stops: Sequence[int] = (),
    keep: bool = False,
    observers: Sequence[object] = (),
    begun: Callable[[Run, State | None], None] = lambda run, state: None,
) -> Trace:
    """Train to the end in a folder of its own.

    Args:
        setups: makes the checked recipe with fresh plugins; called once for every session.
        stops: steps after which to stop, and to go on from the checkpoint with everything made
            anew.
        keep: write checkpoints and weights also where there is no stop.
        observers: further objects with hooks.
        begun: called before a session's first step with the run and, when it goes on, the
            checkpoint it came from.
    """
    recorder = Recorder()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        state: State | None = None
        for until in [*stops, None]:
            run = make(setups(), folder, [*observers, recorder])
            checkpointer = Checkpointer(folder if stops or keep else None, run)
            if state is not None:
                checkpointer.restore(run, state)
            begun(run, state)
            with contextlib.suppress(Interrupted):
                fit(run, checkpointer, until=until)
            if until is not None:
                state = read_state(folder / "checkpoints" / "last.pt")
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        return Trace(
            _copied(run_state(run)),
            tuple(recorder.records),
            History.read(folder / "metrics.jsonl"),
            frozenset(files | set(run.log.notes)),
            run.data.train.steps_per_epoch,
            (load_file(folder / "weights.safetensors"), checkpointer.outcome.best[0])
            if keep
            else None,
        )


def _copied(value: Any) -> Any:
    """Copy tensors and their containers; a plugin's state may hold anything, and is looked at by
    its own check.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the process as it was: its random streams, threads and settings of determinism."""
    cpu = torch.device("cpu")
    random, threads = rng_state(cpu), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark = torch.backends.cudnn.benchmark
    torch.set_num_threads(1)  # the model is too small to gain from more
    try:
        yield
    finally:
        set_rng_state(random, cpu)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark


def logged(trace: Trace, names: frozenset[str] | None = None) -> list[Mapping[str, Any]]:
    """Return what was logged at each step and validation, of all values or of those with these
    names.
    """
    rows: list[Mapping[str, Any]] = []
    for record in trace.records:
        values = {
            name: value for name, value in record.values.items() if names is None or name in names
        }
        if values:
            rows.append({"step": record.step, "epoch": record.epoch, **values})
    return rows
