"""What the report says of the balancing variables, from what was logged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trainkit import Section, figure

from .plots import draw_multipliers, draw_weights, multiplier_table, weight_table


def sections(purpose: str, value: Mapping[str, Any]) -> list[Section]:
    """Return what there is to show of the tasks of one validation or test."""
    found = []
    tasks = f"Means over the tasks of the last {purpose}"
    if any(map(math.isfinite, value.get("omega_mean", []))):
        drawn, axes = figure()
        draw_weights(axes, value["omega_mean"], value["omega_deviation"], value["omega_inverse"])
        text = f"{tasks} whose classes differ in shots."
        if math.isfinite(value["omega_unevenness"]):
            off = value["omega_unevenness"]
            text += (
                f" With equal shots, the weight farthest from uniform was {off:.1%} off (mean over "
                "tasks)."
            )
        table = weight_table(value["omega_mean"], value["omega_inverse"])
        found.append(Section(f"Class weights and shots, {purpose}", text, [drawn], table))
    if any(map(math.isfinite, value.get("size", []))):
        gamma = {
            name.removeprefix("gamma_"): v for name, v in value.items() if name.startswith("gamma_")
        }
        drawn, axes = figure(width=5.4 if len(gamma) < 9 else 9.6)
        draw_multipliers(axes, value["size"], gamma)
        text = f"{tasks} in ranges of the number of support examples."
        table = multiplier_table(value["size"], gamma)
        found.append(Section(f"Step multipliers and task size, {purpose}", text, [drawn], table))
    return found
