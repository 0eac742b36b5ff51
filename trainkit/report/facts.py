"""The parts of the page that hold facts: its heading, headline numbers, and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainkit.config.locations import read_yaml
from trainkit.errors import UserError
from trainkit.log.history import History
from trainkit.log.status import Ending, Status
from trainkit.report.formats import compact, counted, duration, label, number

_KINDS = {
    Status.UNFINISHED: "warn",
    Status.FINISHED: "good",
    Status.STOPPED_EARLY: "note",
    Status.INTERRUPTED: "warn",
    Status.FAILED: "bad",
}
"""The class of the page's style for each status."""


def heading(summary: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the head of the page says of the run."""
    title = folder.resolve().name
    recipe: dict[str, Any] = {}
    with suppress(UserError):  # a broken recipe spoils only the title
        recipe, _, _ = read_yaml(folder / "recipe.yaml")
    model, data = recipe.get("model"), recipe.get("data")
    if isinstance(model, dict) and isinstance(data, dict) and "name" in model and "name" in data:
        title = f"{model['name']} on {data['name']}"
    else:
        recipe = {}
    status = str(summary.get("status", Status.UNFINISHED))
    return {
        "title": title,
        "status": status,
        "status_kind": _KINDS[Ending.parse(status).status],
        "plugin_names": list(recipe.get("plugins") or {}),
        "seed": recipe.get("seed"),
        "data": str(summary.get("data", "")),
    }


def headline_numbers(
    summary: Mapping[str, Any], environment: Mapping[str, Any], history: History
) -> list[tuple[str, str, str]]:
    """Return the headline numbers: label, value, remark."""
    tiles = []
    best, final = summary.get("best"), summary.get("final")
    if isinstance(best, Mapping) and _is_number(best.get("value")):
        tiles.append(_best_tile(best, history))
    if isinstance(final, Mapping):
        for name, value in final.items():
            if value is None:
                shown = math.nan
            else:
                shown = value
            if _is_number(shown):
                tiles.append((f"final {label(name)}", number(shown), ""))
    steps, count = summary.get("steps"), summary.get("epochs")
    if history.records:
        last = history.records[-1]
        steps, count = summary.get("steps", last.step), summary.get("epochs", last.epoch + 1)
    if steps is not None:
        remark = ""
        if count is not None:
            remark = f"in {counted(count, 'epoch')}"
        tiles.append(("steps", number(steps), remark))
    if _is_number(summary.get("seconds")):
        tiles.append(("wall time", duration(summary["seconds"]), ""))
    parameters = summary.get("parameters", environment.get("parameters"))
    if parameters is not None and _is_number(parameters):
        tiles.append(("parameters", compact(parameters), ""))
    return tiles


def _best_tile(best: Mapping[str, Any], history: History) -> tuple[str, str, str]:
    metric = str(best.get("metric", "value")).removeprefix("val/")
    when = ""
    for record in history.records:
        if record.values.get(f"val/{metric}") == best["value"]:
            when = f"after epoch {record.epoch + 1}"
            break
    return f"best {label(metric)}", number(best["value"]), when


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def epoch_table(history: History) -> list[list[str]]:
    """Return a header, and a row per epoch: mean training loss, and the metrics of its last
    validation.
    """
    epochs = history.epochs()
    if not epochs:
        return []
    names: list[str] = []
    for epoch in epochs:
        names += [name for name in epoch.metrics if name not in names]
    rows = [["epoch", "steps", "training loss", *map(label, names)]]
    for epoch in epochs:
        row = [str(epoch.epoch + 1), number(epoch.step)]
        for value in (epoch.loss, *map(epoch.metrics.get, names)):
            row.append("" if value is None else number(value))
        rows.append(row)
    return rows


def flat_facts(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested facts as rows, `a.b` for what is nested."""
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            rows += flat_facts(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            rows.append((f"{prefix}{key}", ", ".join(map(_fact, value))))
        else:
            rows.append((f"{prefix}{key}", _fact(value)))
    return rows


def _fact(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if _is_number(value):
        return repr(value)
    return str(value)
