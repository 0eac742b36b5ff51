"""Writes the files that a run leaves: `last.pt`, the best weights, `weights.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch

from trainkit.checks.watch import Watch
from trainkit.hooks.run import Run
from trainkit.models.weights_file import save_weights
from trainkit.system.writes import atomically, writing
from trainkit.training.checkpoint import restore_run, run_state
from trainkit.training.outcome import Outcome


def _copied(value: Any) -> Any:
    """Return a state with its tensors copied to the CPU: the run goes on and changes its own."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy(value)  # a model's has an attribute with the versions of its modules
        copied.update((key, _copied(v)) for key, v in value.items())
        return copied
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value


class Checkpointer:
    """Writes the files that a run leaves: `last.pt`, the best weights, `weights.safetensors`.

    Args:
        folder: the run folder; None writes nothing (ranks other than 0 still take part).
        run: the run whose checkpoints these are.

    Attributes:
        outcome: what the run has reached so far.
        watch: looks for numbers that are not finite.
    """

    def __init__(self, folder: Path | None, run: Run) -> None:
        self.folder = folder
        self.outcome = Outcome(run.recipe.checkpoint)
        self.watch = Watch(run)
        self._spec = run.recipe.checkpoint
        self._held: dict[str, Any] | None = None
        if folder is not None:
            with writing(folder / "checkpoints"):
                (folder / "checkpoints").mkdir(parents=True, exist_ok=True)

    def is_due(self, step: int) -> bool:
        """Return whether the recipe wants a checkpoint after this step."""
        return self._spec.every_steps is not None and step % self._spec.every_steps == 0

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
        state = run_state(run) | {"log": run.log.state_dict()}
        state |= self.outcome.state_dict() | {"watch": self.watch.state_dict()}
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
        self.outcome.load_state_dict(state)
        self.watch.load_state_dict(state.get("watch", {}))
        if self.folder is not None:
            self.watch.last_good = f"{self.folder / 'checkpoints' / 'last.pt'} (step {run.step})"

    def save_if_best(self, run: Run, metrics: Mapping[str, float]) -> bool:
        """Keep the weights as they are being validated if their metric is among the best; return
        whether it is the best of all, on every rank.

        Raises:
            TrainingError: they are not finite.
        """
        self.watch.admit_weights()
        rank = self.outcome.add(run.epoch, metrics)
        if rank is None or self.folder is None:
            return rank == 0
        entry = self.outcome.best[rank]
        metadata = {
            "model": run.recipe.model.name,
            "epoch": str(run.epoch + 1),
            self._spec.metric: repr(entry["value"]),
        }
        save_weights(run.model, self.folder / "checkpoints" / entry["file"], metadata)
        if rank == 0:
            save_weights(run.model, self.folder / "weights.safetensors", metadata)
        return rank == 0
