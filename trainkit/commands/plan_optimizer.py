"""What a plan says of the optimizer, its parameter groups and its learning rate."""

from __future__ import annotations

from typing import Any

import pluggy
from torch import nn
from torch.optim import Optimizer

from trainkit.config.optimizer import OptimizerSpec
from trainkit.errors import Location
from trainkit.hooks.run import Run
from trainkit.optim.lookahead import Lookahead


def group_rows(
    run: Run, manager: pluggy.PluginManager, locations: dict[str, Location]
) -> list[dict[str, Any]]:
    """Return the optimizer's groups as plain data, with their peak rates and why they are so."""
    where = run.recipe.where
    by = []
    for i in manager.hook.build_param_groups.get_hookimpls():
        if i.plugin_name in locations:
            by.append(locations[i.plugin_name])
    rows = []
    for group in run.optimizer.param_groups:
        # The schedule has already set the first step's rate; a group's own is its peak.
        told = [where("optimizer", "weight_decay")]
        if group.get("use_fallback"):
            told.append(where("optimizer", "fallback"))
        peak = group.get("initial_lr", group["lr"]) * group.get("lr_scale", 1.0)
        rows.append(
            {
                "name": group.get("name", "?"),
                "tensors": len(group["params"]),
                "parameters": sum(map(nn.Parameter.numel, group["params"])),
                "lr": peak,
                "weight_decay": group.get("weight_decay", 0.0),
                "rule": group.get("rule", "set by a plugin"),
                "from": ", ".join(map(str, dict.fromkeys([*told, *by]))),
            }
        )
    return rows


def optimizer_words(run: Run) -> str:
    """Say which optimizer moves the parameters, and how its rate comes about if it is scaled."""
    words = _kind(run.optimizer)
    rates = [group.get("initial_lr") for group in run.optimizer.param_groups]
    # A plugin's optimizer may have a rate of its own.
    if run.recipe.optimizer.lr_base is not None and run.peak_lr in rates:
        words += f"; {_scaled(run.recipe.optimizer, run.data.train.examples_per_step)}"
    return words


def _kind(optimizer: Optimizer) -> str:
    name = type(optimizer).__name__
    if not isinstance(optimizer, Lookahead):
        return name
    group, inner = optimizer.param_groups[0], type(optimizer.base).__name__
    share, every = group["lookahead_alpha"], group["lookahead_k"]
    return f"{name} around {inner}: slow weights go {share:g} of the way every {every} steps"


def _scaled(spec: OptimizerSpec, examples: int) -> str:
    factor = f"{examples:,} / {spec.lr_base_size:,} examples a step"
    if spec.lr_rule == "sqrt":
        factor = f"the square root of {factor}"
    return f"peak lr {spec.peak_lr(examples):g} = lr_base {spec.lr_base:g} times {factor}"
