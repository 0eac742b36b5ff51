"""What a recipe will do, found out by building everything and training nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, cast

import pluggy
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from trainkit.build import Setup, build, compose
from trainkit.errors import Mark, PluginError
from trainkit.guard import ask
from trainkit.hooks import Hooks
from trainkit.manager import Entry
from trainkit.plan_data import data_facts, data_rows
from trainkit.run import Run

FILES = {
    "recipe.yaml": "the resolved recipe",
    "environment.json": "versions, device, git commit",
    "metrics.jsonl": "every logged value, one line per step",
    "metrics.csv": "the same as one table",
    "checkpoints/last.pt": "the exact state, to resume from",
    "checkpoints/best-EPOCH.safetensors": "the best weights",
    "weights.safetensors": "the very best weights, under timm's keys",
    "summary.json": "final and best metrics",
    "report.html": "the page to look at",
}


def make_plan(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return everything that a run of this recipe would be, as plain data.

    Raises:
        UserError: the recipe has mistakes.
        PluginError: a plugin broke the rules of a hook.
    """
    setup = compose(path, overrides)
    changes: dict[str, list[str]] = {}
    managers: list[pluggy.PluginManager] = []

    def registered(manager: pluggy.PluginManager) -> None:
        managers.append(manager)
        _observe(manager, changes)

    run = build(setup, registered=registered)
    recipe, epochs = run.recipe, run.recipe.train.epochs
    where = recipe.source.nearest
    marks = {entry.name: entry.mark for entry in setup.entries}
    steps = run.data.train.steps_per_epoch
    return {
        "recipe": str(path),
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
        "notes": run.log.notes,
        "model": {
            "is": recipe.model.name,
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "trainable": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
            "from": str(where("model")),
            "changes": [
                {"plugin": name, "from": str(marks[name]), "changes": lines} for name, lines in changes.items()
            ],
        },
        "groups": _groups(run, managers[0], marks),
        "optimizer": {
            "is": type(run.optimizer).__name__,
            "from": _provider(managers[0], "build_optimizer", run, marks),
        },
        "scheduler": {"is": recipe.scheduler.name, "from": _provider(managers[0], "build_scheduler", run, marks)},
        "plugins": _plugins(setup, run),
        "hooks": _timeline(managers[0], setup),
        "files": FILES,
    }


def _observe(manager: pluggy.PluginManager, changes: dict[str, list[str]]) -> None:
    """Note what each wrapper of `build_model` makes of the model that it is given."""
    for implementation in manager.hook.build_model.get_hookimpls():
        if implementation.wrapper:
            function = cast(Callable[..., Generator[None, Any, Any]], implementation.function)
            cast(Any, implementation).function = _observed(function, implementation.plugin_name, changes)


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
    """Return for every module its class, how many numbers it owns itself, and what it prints of its settings."""
    return {
        name: (type(module).__name__, sum(p.numel() for p in module.parameters(recurse=False)), module.extra_repr())
        for name, module in model.named_modules()
    }


def describe_changes(before: dict[str, _Module], after: dict[str, _Module]) -> list[str]:
    """Say in lines how one module tree differs from another."""
    swapped: dict[str, list[str]] = {}
    for name in before.keys() & after.keys():
        if before[name][0] != after[name][0]:
            swapped.setdefault(f"{before[name][0]} -> {after[name][0]}", []).append(name)
    reset = [n for n in before.keys() & after.keys() if before[n][:2] == after[n][:2] and before[n][2] != after[n][2]]
    resized = [name for name in before.keys() & after.keys() if before[name][1] != after[name][1]]
    lines = [f"{len(names)} x {what}: {_some(names, list(after))}" for what, names in sorted(swapped.items())]
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
    shown = [name or "(the model)" for name in order if name in set(names)]
    return ", ".join(shown[:4]) + (f" … {shown[-1]}" if len(shown) > 4 else "")


def _groups(run: Run, manager: pluggy.PluginManager, marks: dict[str, Mark]) -> list[dict[str, Any]]:
    decay = run.recipe.where("optimizer", "weight_decay")
    by = [marks[i.plugin_name] for i in manager.hook.build_param_groups.get_hookimpls() if i.plugin_name in marks]
    rows = []
    for group in run.optimizer.param_groups:
        # The schedule has already set the first step's rate; a group's own is its peak.
        peak = group.get("initial_lr", group["lr"]) * group.get("lr_scale", 1.0)
        rows.append(
            {
                "name": group.get("name", "?"),
                "tensors": len(group["params"]),
                "parameters": sum(p.numel() for p in group["params"]),
                "lr": peak,
                "weight_decay": group.get("weight_decay", 0.0),
                "rule": group.get("rule", "set by a plugin"),
                "from": ", ".join(map(str, [decay, *by])),
            }
        )
    return rows


def _provider(manager: pluggy.PluginManager, hook: str, run: Run, marks: dict[str, Mark]) -> str:
    for implementation in reversed(getattr(manager.hook, hook).get_hookimpls()):
        if implementation.plugin_name in marks and not implementation.wrapper:
            return f"{marks[implementation.plugin_name]} ({implementation.plugin_name})"
    return str(run.recipe.source.nearest(hook.removeprefix("build_")))


def _plugins(setup: Setup, run: Run) -> list[dict[str, Any]]:
    return [
        {
            "name": entry.name,
            "options": entry.plugin.model_dump(mode="json"),
            "place": entry.reason,
            "explains": _explained(entry, run),
            "from": str(entry.mark),
        }
        for entry in setup.entries
    ]


def _explained(entry: Entry, run: Run) -> list[str]:
    lines = ask(entry.plugin, entry.name, "explain", run)
    if not isinstance(lines, list | tuple) or not all(isinstance(line, str) for line in lines):
        raise PluginError(
            f"plugin {entry.name}: explain returned {lines!r:.80}; it must return lines of text in a list"
        )
    return list(lines)


def _timeline(manager: pluggy.PluginManager, setup: Setup) -> list[dict[str, Any]]:
    """Return every hook that something answers or hears, in the order of calls within it."""
    entries = {entry.name: entry for entry in setup.entries}
    core = [name for name in vars(Hooks) if not name.startswith("_")]
    published = [name for name in vars(manager.hook) if name not in core and not name.startswith("_")]
    rows = []
    for name in (*core, *published):
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
                    "place": entry.reason if entry else "core answers last" if role != "wraps" else "around all",
                    "from": str(entry.mark) if entry else "default",
                }
            )
        if calls:
            rows.append({"hook": name, "kind": "value" if is_value else "moment", "calls": calls})
    return rows


def show(plan: dict[str, Any], console: Console) -> None:
    """Print a plan for people."""
    data, model = plan["data"], plan["model"]
    facts = _table("part", "what", "from")
    facts.add_row("device", plan["device"]["is"], plan["device"]["from"])
    facts.add_row("data", f"{data['is']}; input {' x '.join(map(str, data['input']))}", data["from"])
    for name, text in data_rows(data):
        facts.add_row(f"  {name}", text, data["from"])
    steps = f"{data['epochs']} epochs x {data['steps_per_epoch']} = {data['steps']:,}"
    facts.add_row("steps", f"{steps}; {data['effective_batch_size']} examples a step", data["from"])
    facts.add_row("model", f"{model['is']}: {model['parameters']:,} parameters", model["from"])
    for change in model["changes"]:
        facts.add_row(f"  {change['plugin']}", "\n".join(change["changes"]), change["from"])
    facts.add_row("optimizer", plan["optimizer"]["is"], plan["optimizer"]["from"])
    facts.add_row("schedule", plan["scheduler"]["is"], plan["scheduler"]["from"])
    for plugin in plan["plugins"]:
        lines = [f"place: {plugin['place']}", *plugin["explains"]]
        facts.add_row(plugin["name"], "\n".join(lines), plugin["from"])
    for note in plan["notes"]:
        facts.add_row("note", note, "")
    groups = _table("parameter group", "tensors", "parameters", "peak lr", "decay", "rule", "from")
    for group in plan["groups"]:
        numbers = (str(group["tensors"]), f"{group['parameters']:,}", f"{group['lr']:g}", f"{group['weight_decay']:g}")
        groups.add_row(group["name"], *numbers, group["rule"], group["from"])
    hooks = _table("hook", "called, in order", "place", "from")
    for row in plan["hooks"]:
        for i, call in enumerate(row["calls"]):
            who = f"{call['plugin']} {call['role']}"
            hooks.add_row(row["hook"] if i == 0 else "", who, call["place"], call["from"])
    files = _table("file", "what")
    for name, what in plan["files"].items():
        files.add_row(name, what)
    for table in (facts, groups, hooks, files):
        console.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        # Where a line of the recipe stands must stay readable on a narrow terminal: wrap, never cut.
        table.add_column(column, overflow="fold", no_wrap=column == columns[0])
    return table
