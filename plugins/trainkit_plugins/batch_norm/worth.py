"""What is the chosen alpha worth on examples that had no say in it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .alphas import Point, points
from .choice import Gain, Metric, choose_alpha, gain, halves


@dataclass(frozen=True)
class Tuned:
    """The alpha chosen on some examples, and what choosing it so is worth on others.

    Attributes:
        alpha: chosen on all of the examples (`choose_alpha`).
        metric: by which it was chosen.
        examples: how many there were.
        curve: what each alpha gives on all of them.
        alphas: those chosen on the half in even positions and on the half in odd ones.
        nll: gain over alpha 0 of each half measured with the alpha that the other half chose; below
            0 is better.
        accuracy: the same; above 0 is better.
    """

    alpha: float
    metric: Metric
    examples: int
    curve: list[Point]
    alphas: tuple[float, float]
    nll: Gain
    accuracy: Gain

    def summary(self) -> str:
        """Say in sentences what was chosen, what it is worth, and how it is applied."""
        apply = f"convert_batch_norm(model, example_weight={self.alpha:g}) applies it"
        return (
            f"alpha {self.alpha:g} by {self.metric} on the {self.examples} validation examples"
            + (". " if self.alpha else ": no other is better by more than chance. ")
            + f"With each half measured at the alpha chosen on the other ({self.alphas[0]:g} and"
            f" {self.alphas[1]:g}), against alpha 0: nll {self.nll}, accuracy {self.accuracy} "
            "(95% intervals). Metrics and weights of this run are those of alpha 0"
            + (f"; {apply}" if self.alpha else "")
        )

    def columns(self) -> dict[str, Tensor]:
        """Return each attribute of the curve's points as a float64 tensor [len(curve)]."""
        rows = [asdict(point) for point in self.curve]
        return {
            name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]
        }

    def facts(self) -> dict[str, Any]:
        """Return everything as plain data for JSON."""
        return asdict(self)


def tune(scores: Tensor, alphas: Sequence[float], metric: Metric) -> Tuned:
    """Choose alpha on all examples, and tell its worth by cross-fitting: no example is measured
    with its own choice.

    Args:
        scores: [len(alphas), 3, N] of `sweep`.
        alphas: what was measured; 0 is among them.
        metric: by which to choose.

    Raises:
        ValueError: there is one example, or no alpha gives finite predictions.
    """
    even, odd = halves(scores)
    curve = points(scores, alphas)
    best = choose_alpha(scores, alphas, metric)
    known = list(map(float, alphas))
    first, second = (choose_alpha(half, alphas, metric) for half in (even, odd))
    fitted = torch.cat([odd[known.index(first)], even[known.index(second)]], dim=1)
    plain = torch.cat([odd[known.index(0.0)], even[known.index(0.0)]], dim=1)
    gains = gain(fitted[0], plain[0]), gain(fitted[2], plain[2])
    return Tuned(best, metric, scores.shape[2], curve, (first, second), *gains)


@dataclass(frozen=True)
class Choice:
    """The alpha chosen on one half of some examples, and what it is worth on the other half, which
    had no say.

    Attributes:
        alpha: chosen on the first half (`choose_alpha`).
        metric: by which it was chosen.
        examples: how many chose, and how many report.
        curve: what each alpha gives on the half that chose.
        reported: the same on the half that reports, to look at.
        stages: on the half that reports: the model as it came, with statistics measured anew (where
            they were), and with the chosen alpha, by name; the last is to be compared with the
            first.
        nll: gain of the last stage over the first; below 0 is better.
        accuracy: the same; above 0 is better.
    """

    alpha: float
    metric: Metric
    examples: tuple[int, int]
    curve: list[Point]
    reported: list[Point]
    stages: dict[str, Point]
    nll: Gain
    accuracy: Gain

    def facts(self) -> dict[str, Any]:
        """Return everything as plain data for JSON."""
        return asdict(self)

    def verdict(self) -> list[list[str]]:
        """Return the stages as rows of cells, a header first."""
        rows = [["model", "accuracy", "nll", "calibration error"]]
        for name, p in self.stages.items():
            rows.append([name, f"{p.accuracy:.4f}", f"{p.nll:.4f}", f"{p.calibration_error:.4f}"])
        return rows

    def summary(self) -> str:
        """Say what was chosen, what it is worth, and how it is applied."""
        change = (
            f"against the model as it came: nll {self.nll}, accuracy {self.accuracy} (95% "
            "intervals)"
        )
        if self.alpha == 0:
            return (
                "alpha 0 is kept: on the half that chooses no other is better by more than chance; "
                f"{change}"
            )
        apply = f"convert_batch_norm(model, example_weight={self.alpha:g}) applies it"
        return f"alpha {self.alpha:g}; {change}; {apply}"


def choose_on_half(
    scores: Tensor, alphas: Sequence[float], metric: Metric, before: Tensor | None = None
) -> Choice:
    """Choose alpha on the examples in even positions, and report on those in odd ones.

    Args:
        scores: [len(alphas), 3, N] of `sweep`.
        alphas: what was measured, in ascending order; 0 is among them.
        metric: by which to choose.
        before: scores [1, 3, N] at alpha 0 with the statistics that the model came with, where
            `scores` have others.

    Raises:
        ValueError: there is one example, or no alpha gives finite predictions.
    """
    choosing, reporting = halves(scores)
    curve, reported = points(choosing, alphas), points(reporting, alphas)
    alpha = choose_alpha(choosing, alphas, metric)
    places = [list(map(float, alphas)).index(value) for value in (0.0, alpha)]
    first = reporting[places[0]] if before is None else halves(before)[1][0]
    last = reporting[places[1]]
    stages = {"as it came": points(first[None], [0.0])[0]}
    if before is not None:
        stages["statistics measured anew"] = reported[places[0]]
    stages[f"alpha {alpha:g}"] = reported[places[1]]
    examples = choosing.shape[2], reporting.shape[2]
    gains = gain(last[0], first[0]), gain(last[2], first[2])
    return Choice(alpha, metric, examples, curve, reported, stages, *gains)
