"""What the monitor logs, drawn on matplotlib axes that the caller made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def draw_rates(axes: Any, steps: Sequence[int], rates: Sequence[tuple[float, ...]]) -> None:
    """Draw the spread of the adaptive learning rate.

    Args:
        axes: matplotlib axes.
        steps: at which it was measured [n].
        rates: its quantiles 5%, 25%, 50%, 75% and 95% at each [n].
    """
    p05, p25, p50, p75, p95 = zip(*rates, strict=True)
    axes.fill_between(steps, p05, p95, color="C0", alpha=0.2, linewidth=0, label="5% to 95%")
    axes.fill_between(steps, p25, p75, color="C0", alpha=0.35, linewidth=0, label="25% to 75%")
    axes.plot(steps, p50, color="C0", label="median")
    axes.set(xscale="log", yscale="log", xlabel="step", ylabel="adaptive learning rate")
    axes.legend()


def draw_rectification(axes: Any, steps: Sequence[int], values: Sequence[float]) -> None:
    """Draw r_t [n] at its steps [n]."""
    axes.plot(steps, values, color="C1")
    axes.set(xlabel="step", ylabel="rectification r_t", ylim=(0, 1.02))


def draw_gradients(
    axes: Any, steps: Sequence[int], shares: Sequence[Sequence[float]], lowest: int
) -> Any:
    """Draw the share of the gradient's coordinates by binary exponent; return the image.

    Args:
        axes: matplotlib axes.
        steps: at which it was measured, one after the other [n].
        shares: of each entry of the histogram, at each step [n][entries]; entry 0 has the zeros and
            everything below the histogram, and would outshine the rest: it is left out.
        lowest: exponent where entry 1 begins.
    """
    rows = [k for k in range(1, len(shares[0])) if any(share[k] for share in shares)] or [1]
    low, high = rows[0], rows[-1] + 1
    pixels: list[list[float]] = []
    for k in range(low, high):
        pixels.append([share[k] or math.nan for share in shares])  # nothing where nothing is
    image = axes.imshow(
        pixels,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        extent=(steps[0] - 0.5, steps[-1] + 0.5, lowest + low - 1, lowest + high - 1),
    )
    axes.grid(False)
    axes.set(xlabel="step", ylabel="log2 of the magnitude")
    return image
