"""The parts of the page that hold facts: its heading, headline numbers, and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainkit.log.history import History
from trainkit.report.formats import compact, duration, label, number


def heading(recipe_text: str, summary: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the head of the page says of the run."""
    import yaml

    try:
        recipe = yaml.safe_load(recipe_text)
        title = f"{recipe['model']['name']} on {recipe['data']['name']}"
    except (yaml.YAMLError, KeyError, TypeError):
        recipe, title = {}, folder.resolve().name
    status = str(summary.get("status", "not finished"))
    kinds = {"finished": "good", "interrupted": "warn", "stopped early": "note", "failed": "bad"}
    kind = next((kind for start, kind in kinds.items() if status.startswith(start)), "warn")
    return {
        "title": title,
        "status": status,
        "status_kind": kind,
        "plugin_names": list(recipe.get("plugins") or {}),
        "seed": recipe.get("seed"),
        "data": str(summary.get("data", "")),
    }


def headline_numbers(
    summary: Mapping[str, Any], environment: Mapping[str, Any], history: History
) -> list[tuple[str, str, str]]:
    """Return the headline numbers: label, value, remark."""
    tiles = []
    best = summary.get("best")
    if isinstance(best, Mapping) and _is_number(best.get("value")):
        metric = str(best.get("metric", "value")).removeprefix("val/")
        epochs = [
            r.epoch for r in history.records if r.values.get(f"val/{metric}") == best["value"]
        ]
        when = f"after epoch {epochs[0] + 1}" if epochs else ""
        tiles.append((f"best {label(metric)}", number(best["value"]), when))
    final = summary.get("final")
    for name, value in (final if isinstance(final, Mapping) else {}).items():
        if _is_number(value) or value is None:
            tiles.append((f"final {label(name)}", number(math.nan if value is None else value), ""))
    last = history.records[-1] if history.records else None
    steps = summary.get("steps", last.step if last else None)
    if steps is not None:
        count = summary.get("epochs", last.epoch + 1 if last else None)
        remark = (
            f"in {number(count)} {'epoch' if count == 1 else 'epochs'}" if count is not None else ""
        )
        tiles.append(("steps", number(steps), remark))
    if _is_number(summary.get("seconds")):
        tiles.append(("wall time", duration(summary["seconds"]), ""))
    parameters = summary.get("parameters", environment.get("parameters"))
    if parameters is not None and _is_number(parameters):
        tiles.append(("parameters", compact(parameters), ""))
    return tiles


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def epoch_table(history: History) -> list[list[str]]:
    """Return a header, and a row per epoch: mean training loss, and the metrics of its last
    validation.
    """
    epochs = history.epochs()
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch.metrics))
    rows = [["epoch", "steps", "training loss", *map(label, names)]]
    for epoch in epochs:
        values = [epoch.loss, *(epoch.metrics.get(name) for name in names)]
        rows.append(
            [
                str(epoch.epoch + 1),
                number(epoch.step),
                *("" if v is None else number(v) for v in values),
            ]
        )
    return rows if epochs else []


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
    return repr(value) if isinstance(value, (int, float)) else str(value)
