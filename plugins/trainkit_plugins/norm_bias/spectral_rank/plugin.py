"""`spectral_rank`: projections of layers that raise or lower their rank, and a monitor of it, as
a plugin.
"""

from __future__ import annotations

import fnmatch
import math
from contextlib import nullcontext
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import Field, PrivateAttr, model_validator
from timm.layers import Conv2dSame
from torch import Tensor, nn

from trainkit import History, Plugin, Run, Section, figure, first_layers, hookimpl

from ..paper import CITATION
from .operators import Geometry, geometry, project
from .plots import draw_layers, rank_table
from .sizes import input_sizes

PAPER = {"minimize": 0.5, "maximize": 1.5}
"""The thresholds of the paper's experiments."""


class Layer(NamedTuple):
    """A layer that is projected: its name, its weight, what it is in words, and how it acts."""

    name: str
    weight: Tensor
    kind: str
    geometry: Geometry


class SpectralRank(Plugin):
    """Raise or lower the rank of layers during training by projecting their singular values:
    RankMax and RankMin.

    Every few steps: minimize sets the singular values of each layer's operator below the threshold
    to zero, maximize caps them at it. Convolutions are taken as maps of their feature maps, by FFT,
    and cut back to their kernels.
    """

    citation: ClassVar[str] = CITATION
    neutral: ClassVar[dict[str, Any]] = {"mode": "minimize", "threshold": 0.0}
    before: ClassVar[tuple[str, ...]] = ("ema",)

    mode: Literal["maximize", "minimize"] = Field(
        "maximize",
        description="cap singular values at the threshold, or set those below it to zero",
    )
    threshold: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description=(
            "in units of the singular values; default: the paper's, 1.5 to maximize and 0.5 to "
            "minimize; 0 with minimize only measures"
        ),
    )
    every: int = Field(200, ge=1, description="optimizer steps from one projection to the next")
    exclude: tuple[str, ...] | None = Field(
        None,
        description=(
            "names of layers to leave alone, * and ? as in file names; default: the model's first "
            "layer"
        ),
    )

    _layers: list[Layer] = PrivateAttr(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> SpectralRank:
        if self.threshold == 0 and self.mode == "maximize":
            raise ValueError(
                "threshold 0 would set every weight to zero; give one above 0, or set mode to "
                "minimize"
            )
        return self

    @property
    def _bound(self) -> float:
        return PAPER[self.mode] if self.threshold is None else self.threshold

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Find out which layers there are and at which feature maps they work."""
        self._layers, _ = self._find(run)
        if not self._layers:
            self.refuse(
                run,
                "exclude",
                f"of {run.recipe.model.name} no layer is left to project; `trainkit plan` says why "
                "for each",
            )

    @hookimpl
    def after_optimizer_step(self, run: Run) -> None:
        """Measure and project every layer, if it is time."""
        if run.step % self.every:
            return
        for layer in self._layers:
            weight = layer.weight.detach()
            found = project(weight, layer.geometry, self.mode, self._bound)
            run.log.record(f"spectral_rank/effective_rank/{layer.name}", found.effective_rank)
            run.log.record(f"spectral_rank/changed/{layer.name}", found.changed)
            if found.weight is not weight:
                weight.copy_(found.weight)

    def _find(self, run: Run) -> tuple[list[Layer], dict[str, str]]:
        """Return the layers to project, and for every other tensor with two or more dimensions
        why it is not.
        """
        sizes = input_sizes(run.model, lambda: self._forward(run))
        excluded = self._excluded(run.model)
        layers: dict[int, Layer] = {}
        refused: dict[str, str] = {}
        for name, module in run.model.named_modules():
            for key, weight in module.named_parameters(prefix=name, recurse=False):
                if weight.ndim < 2 or id(weight) in layers:
                    continue
                reason = excluded.get(name) or ("" if weight.requires_grad else "not trained")
                if not reason and not key.endswith("weight"):
                    reason = f"part of {type(module).__name__}, not a layer's weight"
                acts = reason or geometry(module, sizes.get(name), (Conv2dSame,))
                if isinstance(acts, Geometry):
                    layers[id(weight)] = Layer(name, weight, _kind(module, acts), acts)
                else:
                    refused[name if key.endswith(".weight") else key] = acts
        return list(layers.values()), refused

    def _excluded(self, model: nn.Module) -> dict[str, str]:
        if self.exclude is None:
            return dict.fromkeys(first_layers(model), "the model's first layer")
        names = [name for name, _ in model.named_modules()]
        return {
            name: "excluded" for pattern in self.exclude for name in fnmatch.filter(names, pattern)
        }

    def _forward(self, run: Run) -> None:
        image = torch.zeros(1, *run.data.input_size, device=run.device.torch)
        # Compiled code would be compiled for a batch of one.
        compiled = run.recipe.train.compile
        try:
            with (
                run.untouched(),
                torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
            ):
                run.model(image)
        except RuntimeError as error:
            self.refuse(
                run,
                "",
                "cannot find out the size of the feature maps, because "
                f"{run.recipe.model.name} does not take one input of the data: {error}",
            )

    def idle(self, run: Run) -> dict[str, str]:
        """Say that no step projects."""
        return {"every": run.past_end(self.every)}

    def explain(self, run: Run) -> list[str]:
        """Say for every layer as what it is projected, or why not."""
        layers, refused = self._find(run)
        what = "sets to zero singular values below"
        if self.mode == "maximize":
            what = "caps singular values at"
        lines = [f"every {self.every} steps: {what} {self._bound:g}, in {len(layers)} layers"]
        if self._bound == (math.inf if self.mode == "maximize" else 0):
            lines = [
                f"every {self.every} steps: measures the effective rank of {len(layers)} layers, "
                "changes nothing"
            ]
        kinds = [(layer.kind, layer.name) for layer in layers]
        for kind, names in _grouped(kinds):
            lines.append(f"{names}: {kind}")
        reasons = [(why, name) for name, why in refused.items()]
        for why, names in _grouped(reasons):
            lines.append(f"{names}: left alone, {why}")
        return lines

    def report(self, history: History) -> list[Section]:
        """Plot the effective rank of every layer, and tabulate where it began and ended."""
        prefix = "spectral_rank/effective_rank/"
        names = [n.removeprefix(prefix) for n in history.names if n.startswith(prefix)]
        if not names:
            return []
        ranks = {n: history.series(prefix + n) for n in names}
        changed = {n: history.series(f"spectral_rank/changed/{n}")[1] for n in names}
        text = (
            "Nuclear over Frobenius norm of each layer's operator, as a share of the largest "
            "possible value (all singular values equal), measured before each projection. The "
            "table has the share of singular values that the first and the last projection "
            "changed: a projection cut back to the kernel does not keep its bound."
        )
        drawn, axes = figure(width=9.6, height=3.4)
        draw_layers(axes, ranks)
        table = rank_table({n: values for n, (_, values) in ranks.items()}, changed)
        return [Section("Effective rank of the layers", text, [drawn], table)]


def _kind(module: nn.Module, acts: Geometry) -> str:
    if isinstance(module, nn.Linear):
        return f"matrix {module.out_features} x {module.in_features}"
    conv = cast(Any, module)
    height, width = conv.kernel_size
    text = f"convolution {conv.in_channels} to {conv.out_channels}, {height} x {width}"
    for label, value in (
        ("stride", max(conv.stride)),
        ("dilation", max(conv.dilation)),
        ("groups", conv.groups),
    ):
        text += f", {label} {value}" if value > 1 else ""
    return text + ("" if acts.grid == (1, 1) else f", on {acts.grid[0]} x {acts.grid[1]}")


def _grouped(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return what is common, and the names that have it in common."""
    found: dict[str, list[str]] = {}
    for common, name in pairs:
        found.setdefault(common, []).append(name)
    return [(common, ", ".join(names)) for common, names in found.items()]
