"""Proof that resuming is exact: train once through and once with a stop, and compare everything,
bit for bit.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainkit.errors import Interrupted, UserError
from trainkit.training.build import build, compose
from trainkit.training.checkpoint import read_state
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import fit

NOT_COMPARED = ("seconds",)


@dataclass(frozen=True)
class Verdict:
    """Whether a resumed run equals one that never stopped, and where it first differs."""

    at: int
    steps: int
    difference: str | None


def verify_resume(recipe: Path, overrides: Sequence[str], at: int, steps: int | None) -> Verdict:
    """Train `recipe` to `steps` without stopping, and again with a stop and a fresh start after
    step `at`.

    Args:
        recipe: the recipe file.
        overrides: as on the command line.
        at: the step after which the second run is stopped.
        steps: where both end; default: five steps after `at`, or the end of training if that is
            sooner.

    Raises:
        UserError: `at` or `steps` is not inside the run.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole, stopped = Path(folder) / "whole", Path(folder) / "stopped"
        total = _train(recipe, overrides, whole, None)
        end = min(at + 5, total) if steps is None else steps
        if end > total:
            raise UserError(f"--steps {end}: the run has {total} steps")
        if not 0 < at < end:
            raise UserError(
                f"--at {at}: must be at least 1 and less than the last step compared, {end}"
            )
        _train(recipe, overrides, whole, end)
        _train(recipe, overrides, stopped, at)
        _train(recipe, overrides, stopped, end)
        first = read_state(whole / "checkpoints" / "last.pt")
        second = read_state(stopped / "checkpoints" / "last.pt")
        difference = next(differences(first, second), None)
        logs = []
        for f in (whole, stopped):
            logs.append((f / "metrics.jsonl").read_text().splitlines())
        if difference is None and logs[0] != logs[1]:
            line = next(i for i, pair in enumerate(zip(*logs, strict=False)) if pair[0] != pair[1])
            difference = f"metrics.jsonl line {line + 1}: {logs[0][line]} against {logs[1][line]}"
        return Verdict(at, end, difference)


def _train(recipe: Path, overrides: Sequence[str], folder: Path, until: int | None) -> int:
    """Train on from what is in `folder` until a step; with None only count the steps of the
    whole run.
    """
    setup = compose(recipe, overrides)
    run = build(setup, folder)
    total = run.data.train.steps_per_epoch * run.recipe.train.epochs
    if until is not None:
        checkpointer = Checkpointer(run.folder, run)
        last = folder / "checkpoints" / "last.pt"
        if last.exists():
            checkpointer.restore(run, read_state(last))
        with contextlib.suppress(Interrupted):
            fit(run, checkpointer, until=until)
    return total


def differences(first: Any, second: Any, path: str = "") -> Iterator[str]:
    """Yield every place at which two states differ, in order; tensors are compared bit for bit."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        yield from _tensor_difference(first, second, path)
    elif isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys([*first, *second]):
            if key in NOT_COMPARED and not path:
                continue
            if path:
                where = f"{path}.{key}"
            else:
                where = str(key)
            if key not in first or key not in second:
                yield f"{where}: only in the {'first' if key in first else 'second'}"
            else:
                yield from differences(first[key], second[key], where)
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple):
        if len(first) != len(second):
            yield f"{path}: {len(first)} against {len(second)} elements"
        for i, (a, b) in enumerate(zip(first, second, strict=False)):
            yield from differences(a, b, f"{path}[{i}]")
    elif first != second and not (first != first and second != second):  # two NaNs are the same
        yield f"{path}: {first!r} against {second!r}"


def _tensor_difference(first: torch.Tensor, second: torch.Tensor, path: str) -> Iterator[str]:
    if first.shape != second.shape or first.dtype != second.dtype:
        yield (
            f"{path}: {first.dtype} {tuple(first.shape)} against {second.dtype} "
            f"{tuple(second.shape)}"
        )
        return
    bits: list[torch.Tensor] = []
    if first.numel():
        for t in (first, second):
            bits.append(t.contiguous().reshape(-1).view(torch.uint8))
    if bits and not torch.equal(*bits):
        size = first.element_size()
        index = int((bits[0] != bits[1]).nonzero()[0]) // size
        count = int((bits[0] != bits[1]).reshape(-1, size).any(1).sum())
        a, b = first.reshape(-1)[index].item(), second.reshape(-1)[index].item()
        yield (
            f"{path}: {count} of {first.numel()} elements differ, the first at {index}: {a!r} "
            f"against {b!r}"
        )
