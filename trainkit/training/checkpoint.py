"""The exact state of a run, saved so that going on from it equals never having stopped.

A file is written under another name, forced to disk and then renamed: there is always a whole one.
Files are read with `weights_only=True`: nothing in a checkpoint can run code.
"""

from __future__ import annotations

import json
import math
import time
import zipfile
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from trainkit.checks.watch import Watch
from trainkit.errors import PluginError, UserError
from trainkit.hooks.guard import ask
from trainkit.hooks.plugin import Plugin
from trainkit.hooks.run import Run
from trainkit.seeds import rng_state, set_rng_state
from trainkit.system.paths import is_file
from trainkit.system.writes import atomically, writing
from trainkit.training.weights import misfit

FORMAT = 2


def run_state(run: Run) -> dict[str, Any]:
    """Return everything that the next step depends on, as plain containers and tensors."""
    device = run.device.torch
    own = {
        "global": rng_state(device),
        "plugins": {name: plugin.generator_states() for name, plugin in run.plugins.items()},
    }
    return {
        "format": FORMAT,
        "recipe": run.recipe.dump(),
        "epoch": run.epoch,
        "step": run.step,
        "stop_reason": run.stop_reason,
        "threads": torch.get_num_threads(),
        "model": run.model.state_dict(),
        # Which modules were in evaluation mode (a frozen norm, say): train() at the next epoch is
        # too late.
        "frozen": [name for name, module in run.model.named_modules() if not module.training],
        "untrained": [name for name, p in run.model.named_parameters() if not p.requires_grad],
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "scaler": run.device.scaler.state_dict(),
        "random": run.device.gather(own),
        "plugins": {name: _state_of(plugin, run) for name, plugin in run.plugins.items()},
    }


def _state_of(plugin: Plugin, run: Run) -> dict[str, Any]:
    state = ask(plugin, plugin.name, "state_dict")
    if not isinstance(state, dict):
        mark = run.recipe.source.nearest("plugins", plugin.name)
        found = type(state).__name__
        raise PluginError(
            f"{mark}: plugins.{plugin.name}: its state_dict returned a {found}; it must return a "
            "dict"
        )
    return state


def restore_run(run: Run, state: dict[str, Any]) -> None:
    """Put `run` where it was when `run_state` returned `state`.

    Raises:
        UserError: the state is of a run with another number of ranks, or its weights do not fit the
            model.
    """
    if len(state["random"]) != run.device.world:
        raise UserError(
            f"the checkpoint is of a run on {len(state['random'])} rank(s), this is one on "
            f"{run.device.world}; an exact resume needs the same number"
        )
    run.epoch, run.step, run.stop_reason = state["epoch"], state["step"], state["stop_reason"]
    torch.set_num_threads(state["threads"])
    try:
        run.model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise UserError(f"the checkpoint does not fit the model: {misfit(error)}") from None
    run.model.train()
    for name in state["frozen"]:
        run.model.get_submodule(name).training = False
    for name, parameter in run.model.named_parameters():
        parameter.requires_grad_(name not in state["untrained"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scheduler.load_state_dict(state["scheduler"])
    run.device.scaler.load_state_dict(state["scaler"])
    for name, plugin in run.plugins.items():
        ask(plugin, name, "load_state_dict", state["plugins"][name])
        plugin.load_generator_states(state["random"][run.device.rank]["plugins"][name])
    set_rng_state(state["random"][run.device.rank]["global"], run.device.torch)


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a model's state under timm's keys, so that plain timm loads it."""
    # Tied tensors share memory, which safetensors refuses; a contiguous copy of each does not.
    state = {
        name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()
    }

    def write(part: Path) -> None:
        save_file(state, part, metadata={"format": "pt", **metadata})
        _order_metadata(part)

    atomically(path, write)


def _order_metadata(path: Path) -> None:
    """Sort what safetensors writes in random order: files with the same weights shall have the
    same bytes.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))  # the format allows spaces at the end


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint of `run_state`.

    Raises:
        UserError: it is not there, not whole, or not one of ours.
    """
    if not is_file(path):
        raise UserError(
            f"{path}: there is no checkpoint here; start the run anew, or name another folder"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            spoiled = (
                archive.testzip()
            )  # torch does not look at the checksums: a flipped bit would be trained on
        if spoiled:
            raise ValueError(f"the checksum of {spoiled} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # spoiled bytes may raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path}: damaged, or not a checkpoint of trainkit ({reason[:160]})"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint that this version of trainkit can read")
    return state


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


class Keeper:
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

    def consider(self, run: Run, metrics: Mapping[str, float]) -> None:
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
