"""The exact state of a run, saved so that going on from it equals never having stopped.

A file is written under another name, forced to disk and then renamed: there is always a whole one.
Files are read with `weights_only=True`: nothing in a checkpoint can run code.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from trainkit.errors import PluginError, UserError
from trainkit.hooks.guard import ask
from trainkit.hooks.plugin import Plugin
from trainkit.hooks.run import Run
from trainkit.models.weights import misfit
from trainkit.seeds import rng_state, set_rng_state
from trainkit.system.paths import is_file

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
        location = run.recipe.raw.nearest("plugins", plugin.name)
        raise PluginError(
            f"{location}: plugins.{plugin.name}: its state_dict returned a "
            f"{type(state).__name__}; it must return a dict"
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
        if str(error).strip():
            reason = str(error).strip().splitlines()[0]
        else:
            reason = type(error).__name__
        raise UserError(
            f"{path}: damaged, or not a checkpoint of trainkit ({reason[:160]})"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint that this version of trainkit can read")
    return state
