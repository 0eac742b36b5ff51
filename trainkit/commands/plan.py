"""What a recipe will do, found out by building everything and training nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import pluggy
from torch import nn

from trainkit.commands.plan_data import (
    augmentation_words,
    data_facts,
    loss_words,
    schedule_words,
)
from trainkit.commands.plan_optimizer import group_rows, optimizer_words
from trainkit.config.raw import Given
from trainkit.errors import Location, PluginError
from trainkit.hooks.guard import ask
from trainkit.hooks.order import Entry
from trainkit.hooks.run import Run
from trainkit.hooks.specs import Hooks
from trainkit.system.run_files import RUN_FILES
from trainkit.training.build import Setup, build, compose


def make_plan(given: Given, overrides: Sequence[str]) -> dict[str, Any]:
    """Return everything that a run of this recipe would be, as plain data.

    Raises:
        UserError: the recipe has mistakes.
        PluginError: a plugin broke the rules of a hook.
    """
    setup = compose(given, overrides)
    changes: dict[str, list[str]] = {}
    managers: list[pluggy.PluginManager] = []

    def registered(manager: pluggy.PluginManager) -> None:
        managers.append(manager)
        _observe(manager, changes)

    run = build(setup, registered=registered)
    recipe, epochs = run.recipe, run.recipe.train.epochs
    where = recipe.raw.nearest
    locations = {}
    for entry in setup.entries:
        locations[entry.name] = entry.location
    steps = run.data.train.steps_per_epoch
    return {
        "recipe": recipe.raw.file,
        "device": {"is": run.device.describe(), "from": str(recipe.where("train", "device"))},
        "data": {
            "is": run.data.summary,
            "input": list(run.data.input_size),
            "effective_batch_size": run.data.train.examples_per_step,
            "steps_per_epoch": steps,
            "epochs": epochs,
            "steps": steps * epochs,
            "from": str(where("data")),
            **data_facts(run.data),
        },
        "steps_from": str(recipe.where("train", "epochs")),
        "augmentation": {
            "is": augmentation_words(getattr(recipe.data, "augment", None)),
            "from": str(recipe.where("data", "augment")),
        },
        "model": {
            "is": recipe.model.name,
            "parameters": sum(map(nn.Parameter.numel, run.model.parameters())),
            "trainable": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
            "from": str(where("model")),
            "changes": [
                {"plugin": name, "from": str(locations[name]), "changes": lines}
                for name, lines in changes.items()
            ],
        },
        "weights": _weights(run),
        "loss": {
            "is": loss_words(recipe.train.loss),
            "from": _provider(
                managers[0], "compute_loss", recipe.where("train", "loss"), locations
            ),
        },
        "groups": group_rows(run, managers[0], locations),
        "optimizer": {
            "is": optimizer_words(run),
            "from": _provider(managers[0], "build_optimizer", recipe.where("optimizer"), locations),
        },
        "scheduler": {
            "is": schedule_words(recipe.scheduler),
            "from": _provider(managers[0], "build_scheduler", recipe.where("scheduler"), locations),
        },
        "plugins": _plugins(setup, run),
        "hooks": _timeline(managers[0], setup),
        "notes": run.log.notes,
        "files": RUN_FILES,
    }


def _observe(manager: pluggy.PluginManager, changes: dict[str, list[str]]) -> None:
    """Note what each wrapper of `build_model` makes of the model that it is given."""
    for implementation in manager.hook.build_model.get_hookimpls():
        if implementation.wrapper:
            function = cast(Callable[..., Generator[None, Any, Any]], implementation.function)
            cast(Any, implementation).function = _observed(
                function, implementation.plugin_name, changes
            )


def _observed(
    function: Callable[..., Generator[None, Any, Any]], name: str, changes: dict[str, list[str]]
) -> Callable[..., Generator[None, Any, Any]]:
    def wrapper(*args: Any) -> Generator[None, Any, Any]:
        inner = function(*args)
        next(inner)
        model = yield
        before = _snapshot(model)
        try:
            inner.send(model)
        except StopIteration as done:
            changes[name] = describe_changes(before, _snapshot(done.value))
            return done.value
        raise RuntimeError(f"plugin {name}: the wrapper build_model must yield once")

    return wrapper


_Module = tuple[str, int, str]


def _snapshot(model: nn.Module) -> dict[str, _Module]:
    """Return for every module its class, how many numbers it owns itself, and what it prints of
    its settings.
    """
    found: dict[str, _Module] = {}
    for name, module in model.named_modules():
        found[name] = (
            type(module).__name__,
            sum(map(nn.Parameter.numel, module.parameters(recurse=False))),
            module.extra_repr(),
        )
    return found


def describe_changes(before: dict[str, _Module], after: dict[str, _Module]) -> list[str]:
    """Say in lines how one module tree differs from another."""
    swapped: dict[str, list[str]] = {}
    for name in before.keys() & after.keys():
        if before[name][0] != after[name][0]:
            swapped.setdefault(f"{before[name][0]} -> {after[name][0]}", []).append(name)
    reset, resized = [], []
    for name in before.keys() & after.keys():
        if before[name][1] != after[name][1]:
            resized.append(name)
        elif before[name][:2] == after[name][:2] and before[name][2] != after[name][2]:
            reset.append(name)
    lines = []
    for what, members in sorted(swapped.items()):
        lines.append(f"{len(members)} x {what}: {_some(members, list(after))}")
    for label, names, order in (
        ("added", after.keys() - before.keys(), after),
        ("removed", before.keys() - after.keys(), before),
        ("parameters changed in", resized, after),
        ("settings changed in", reset, after),
    ):
        if names:
            lines.append(f"{label} {len(names)} module(s): {_some(list(names), list(order))}")
    return lines or ["no module changed"]


def _some(names: Sequence[str], order: Sequence[str]) -> str:
    shown = []
    for name in order:
        if name in set(names):
            shown.append(name or "(the model)")
    return ", ".join(shown[:4]) + (f" … {shown[-1]}" if len(shown) > 4 else "")


def _provider(
    manager: pluggy.PluginManager, hook: str, core: Location, locations: dict[str, Location]
) -> str:
    """Return where the provider of a value is named: a plugin, or core's section of the recipe."""
    for implementation in reversed(getattr(manager.hook, hook).get_hookimpls()):
        if implementation.plugin_name in locations and not implementation.wrapper:
            return f"{locations[implementation.plugin_name]} ({implementation.plugin_name})"
    return str(core)


def _weights(run: Run) -> dict[str, str]:
    """Say what the model starts from."""
    spec, where = run.recipe.model, run.recipe.where
    if spec.checkpoint:
        return {"is": f"from the file {spec.checkpoint}", "from": str(where("model", "checkpoint"))}
    if not spec.pretrained:
        return {"is": "random, from the seed", "from": str(where("model", "pretrained"))}
    cfg = getattr(run.model, "pretrained_cfg", None) or {}
    source = next(
        (cfg[key] for key in ("file", "hf_hub_id", "url") if cfg.get(key)), "timm's own source"
    )
    tag = ""
    if cfg.get("tag"):
        tag = f", {cfg['tag']}"
    return {
        "is": f"timm's pretrained ones{tag}: {source}",
        "from": str(where("model", "pretrained")),
    }


def _plugins(setup: Setup, run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for entry in setup.entries:
        found.append(
            {
                "name": entry.name,
                "options": entry.plugin.model_dump(mode="json"),
                "place": entry.reason,
                "explains": _explained(entry, run),
                "from": str(entry.location),
            }
        )
    return found


def _explained(entry: Entry, run: Run) -> list[str]:
    lines = ask(entry.plugin, entry.name, "explain", run)
    if not isinstance(lines, list | tuple) or not all(isinstance(line, str) for line in lines):
        raise PluginError(
            f"plugin {entry.name}: explain returned {lines!r:.80}; it must return lines of text in "
            "a list"
        )
    return list(lines)


def _timeline(manager: pluggy.PluginManager, setup: Setup) -> list[dict[str, Any]]:
    """Return every hook that something answers or hears, in the order of calls within it."""
    entries = {entry.name: entry for entry in setup.entries}
    rows = []
    # Core's hooks in the order of calls, then the published ones.
    for name in dict.fromkeys((*vars(Hooks), *vars(manager.hook))):
        if name.startswith("_"):
            continue
        caller = getattr(manager.hook, name)
        is_value = bool(caller.spec.opts.get("firstresult"))
        calls: list[dict[str, str]] = []
        for implementation in reversed(caller.get_hookimpls()):  # pluggy keeps them last first
            entry = entries.get(implementation.plugin_name)
            role = "wraps" if implementation.wrapper else "provides" if is_value else "hears"
            if role == "provides" and any(call["role"] == "provides" for call in calls):
                continue  # core's default, which a plugin replaces
            calls.append(
                {
                    "plugin": entry.name if entry else "core",
                    "role": role,
                    "place": (
                        entry.reason
                        if entry
                        else "core answers last"
                        if role != "wraps"
                        else "around all"
                    ),
                    "from": str(entry.location) if entry else "default",
                }
            )
        if calls:
            rows.append({"hook": name, "kind": "value" if is_value else "moment", "calls": calls})
    return rows
