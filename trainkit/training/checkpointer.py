"""Writes the files that a run leaves: `last.pt`, the best weights, `weights.safetensors`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch

from trainkit.checks.watch import Watch
from trainkit.hooks.run import Run
from trainkit.system.writes import atomically, writing
from trainkit.training.checkpoint import restore_run, run_state, save_weights


def _rank(value: float) -> tuple[bool, float]:
    """Return what sorts better values first and those that are not finite last."""
    finite = math.isfinite(value)
    return not finite, -value if finite else 0.0


def _copied(value: Any) -> Any:
    """Return a state with its tensors copied to the CPU: the run goes on and changes its own."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy(value)  # a model's has an attribute with the versions of its modules
        copied.update((key, _copied(v)) for key, v in value.items())
        return copied
    if isinstance(value, list | tuple):
        return type(value)(_copied(v) for v in value)
    return value


class Checkpointer:
    """Writes the files that a run leaves: `last.pt`, the best weights, `weights.safetensors`.

    Args:
        folder: the run folder; None writes nothing (ranks other than 0 still take part).
        run: the run whose checkpoints these are.
    """

    def __init__(self, folder: Path | None, run: Run) -> None:
        self.folder = folder
        self.spec = run.recipe.checkpoint
        self.best: list[dict[str, Any]] = []
        self.final: dict[str, float] = {}
        self.watch = Watch(run)
        self.seconds_before = 0.0
        self._started = time.monotonic()
        self._held: dict[str, Any] | None = None
        if folder is not None:
            with writing(folder / "checkpoints"):
                (folder / "checkpoints").mkdir(parents=True, exist_ok=True)

    def ran(self, run: Run) -> bool:
        """Return whether anything has happened that is worth a summary."""
        return run.step > 0

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all its sessions."""
        return self.seconds_before + time.monotonic() - self._started

    def is_due(self, step: int) -> bool:
        """Return whether the recipe wants a checkpoint after this step."""
        return self.spec.every_steps is not None and step % self.spec.every_steps == 0

    def begin(self, run: Run) -> None:
        """Refuse before the first step what `save` would refuse after it; every rank must call
        this too.
        """
        self._admit(run, run_state(run))

    def _admit(self, run: Run, state: dict[str, Any]) -> None:
        self.watch.admit(state, written=run.device.any(self.folder is not None))

    def save(self, run: Run) -> None:
        """Write `last.pt`. Every rank must call this: each contributes its random state.

        Raises:
            PluginError: a state could be saved and not read back; the file is left as it is.
            TrainingError: a number in it is not finite, or it cannot be written; the file is left
                as it is.
        """
        self._write(self._state(run))

    def hold(self, run: Run) -> None:
        """Keep a copy of the state as it is now, for `save_held`. Every rank must call this.
        Raises as `save` does.
        """
        if self.folder is not None or run.device.world > 1:
            state = self._state(run)
            self._held = None if self.folder is None else _copied(state)

    def save_held(self) -> None:
        """Write as `last.pt` what `hold` kept: the run is stopped in the middle of what must not
        be seen in it.
        """
        if self._held is not None:
            self._write(self._held)

    def _state(self, run: Run) -> dict[str, Any]:
        state = run_state(run) | {
            "log": run.log.state_dict(),
            "best": self.best,
            "final": self.final,
        }
        state |= {"seconds": self.seconds, "watch": self.watch.state_dict()}
        self._admit(run, state)
        return state

    def _write(self, state: dict[str, Any]) -> None:
        if self.folder is None:
            return
        path = self.folder / "checkpoints" / "last.pt"
        atomically(path, lambda part: torch.save(state, part))
        self.watch.last_good = f"{path} (step {state['step']})"
        kept = {entry["file"] for entry in state["best"]}
        for old in path.parent.glob("best-*.safetensors"):
            if old.name not in kept:
                with writing(old):
                    old.unlink(missing_ok=True)

    def restore(self, run: Run, state: dict[str, Any]) -> None:
        """Put `run`, its log and the list of best weights where `state` says."""
        restore_run(run, state)
        run.log.load_state_dict(state["log"])
        self.best, self.final = list(state["best"]), dict(state["final"])
        self.watch.load_state_dict(state.get("watch", {}))
        self.seconds_before = state["seconds"]
        if self.folder is not None:
            self.watch.last_good = f"{self.folder / 'checkpoints' / 'last.pt'} (step {run.step})"

    def save_if_best(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Keep the weights as they are being validated if their metric is among the best.

        Raises:
            TrainingError: they are not finite.
        """
        self.watch.admit_weights()
        self.final = dict(metrics)
        value = metrics[self.spec.metric]
        file = f"best-{run.epoch + 1:04d}.safetensors"
        entry = {
            "epoch": run.epoch,
            "value": value,
            "metrics": dict(metrics),
            "file": file,
        }
        sign = 1 if self.spec.mode == "max" else -1
        # A tie keeps the earlier weights; what is not finite never ranks above what is.
        ranked = sorted([*self.best, entry], key=lambda e: (*_rank(sign * e["value"]), e["epoch"]))
        self.best = ranked[: self.spec.keep_best]
        if entry not in self.best or self.folder is None:
            return
        metadata = {
            "model": run.recipe.model.name,
            "epoch": str(run.epoch + 1),
            self.spec.metric: repr(value),
        }
        save_weights(run.model, self.folder / "checkpoints" / file, metadata)
        if self.best[0] is entry:
            save_weights(run.model, self.folder / "weights.safetensors", metadata)
