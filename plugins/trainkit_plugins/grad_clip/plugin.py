"""`grad_clip` and `smoothness`: clipping as a plugin, and the monitor that tells whether it can
help.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from functools import partial
from itertools import islice
from statistics import fmean, median
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, PrivateAttr, model_validator
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch.optim import Optimizer

from trainkit import History, Plugin, Run, Section, classifiers, figure, hookimpl

from .clipping import Clipped, clip_by_global_norm, clip_by_value, clip_tensors_with
from .fit import fit_l0_l1
from .plots import draw_norms, draw_scatter, draw_share, fit_table
from .smoothness import across_ranks, gradient_of, interior_grid, local_smoothness, snapshot

_CITATION = """\
@inproceedings{zhang2020why,
  title={Why Gradient Clipping Accelerates Training: A Theoretical Justification for Adaptivity},
  author={Zhang, Jingzhao and He, Tianxing and Sra, Suvrit and Jadbabaie, Ali},
  booktitle={International Conference on Learning Representations},
  year={2020}
}"""


class GradClip(Plugin):
    """Clip gradients once per step: by their joint norm, by value, or relative to the weights
    (adaptive).

    It acts on final gradients: the whole accumulation window, unscaled, averaged over ranks. Each
    step logs the joint norm before and after, and whether it was clipped, without waiting for the
    device.
    """

    citation: ClassVar[str] = _CITATION
    neutral: ClassVar[dict[str, Any]] = {
        "max_norm": math.inf,
        "max_value": math.inf,
        "factor": math.inf,
    }

    mode: Literal["norm", "value", "adaptive"] = Field(
        "norm",
        description=(
            "clip the joint norm of all gradients, each entry, or each unit relative to its weights"
        ),
    )
    max_norm: float = Field(
        1.0,
        gt=0,
        description="mode norm: largest joint L2 norm that is left alone; .inf only logs the norm",
    )
    max_value: float = Field(
        0.1,
        gt=0,
        description="mode value: largest size of one entry that is left alone; .inf only logs",
    )
    factor: float = Field(
        0.01,
        gt=0,
        description="mode adaptive: largest norm of a unit's gradient over that of its weights",
    )
    eps: float = Field(
        1e-3,
        allow_inf_nan=False,
        gt=0,
        description="mode adaptive: norm of the weights below which this is used instead",
    )

    @model_validator(mode="after")
    def _check(self) -> GradClip:
        uses = {"norm": {"max_norm"}, "value": {"max_value"}, "adaptive": {"factor", "eps"}}
        for mode, names in uses.items():
            for name in names if mode != self.mode else ():
                # A resolved recipe writes every default out, and infinity clips nothing in any
                # mode.
                if getattr(self, name) not in (type(self).model_fields[name].default, math.inf):
                    raise ValueError(
                        f"{name} does nothing in mode {self.mode}; drop it, or set mode to {mode}"
                    )
        return self

    @hookimpl
    def before_optimizer_step(self, model: nn.Module, optimizer: Optimizer, run: Run) -> None:
        """Clip what the optimizer is about to use."""
        result = self._clip(model, _parameters(optimizer))
        run.log.record("grad_clip/norm_before", result.before)
        run.log.record("grad_clip/norm_after", result.after)
        run.log.record("grad_clip/clipped", result.clipped)

    def _clip(self, model: nn.Module, params: list[Tensor]) -> Clipped:
        if self.mode == "norm":
            return clip_by_global_norm(params, self.max_norm)
        if self.mode == "value":
            return clip_by_value(params, self.max_value)
        heads = {
            id(p) for name in classifiers(model) for p in model.get_submodule(name).parameters()
        }
        body = [p for p in params if id(p) not in heads]
        return clip_tensors_with(
            [p.grad for p in params], partial(adaptive_clip_grad, body, self.factor, self.eps)
        )

    def explain(self, run: Run) -> list[str]:
        """Say what is clipped, and which layers adaptive clipping leaves alone."""
        if self.mode == "norm":
            count = len(_parameters(run.optimizer))
            return [f"joint norm of the gradients of {count} tensors: at most {self.max_norm:g}"]
        if self.mode == "value":
            return [f"each entry of a gradient: between {-self.max_value:g} and {self.max_value:g}"]
        heads = ", ".join(classifiers(run.model)) or "none (the model names no classifier)"
        return [
            f"gradient norm of each unit: at most {self.factor:g} of its weights'; not clipped: "
            f"{heads}"
        ]

    def report(self, history: History) -> list[Section]:
        """Plot the norm before and after, and the share of steps clipped."""
        steps, rows = history.together(
            "grad_clip/norm_before", "grad_clip/norm_after", "grad_clip/clipped"
        )
        finite = [
            (step, *row) for step, row in zip(steps, rows, strict=True) if math.isfinite(row[0])
        ]
        if not finite:
            return []
        at, before, after, clipped = (list(column) for column in zip(*finite, strict=True))
        text = (
            f"{fmean(clipped):.1%} of {len(at):,} steps were clipped. The median norm before "
            f"clipping was {median(before):.3g}; a tenth of the steps had more than "
            f"{sorted(before)[int(0.9 * len(before))]:.3g}."
        )
        if len(at) < len(steps):
            text += (
                f" At {len(steps) - len(at)} further steps it was not finite, and nothing was "
                "clipped."
            )
        drawn, (top, bottom) = figure(2, width=9.6, height=3.9, sharex=True, height_ratios=[3, 1])
        draw_norms(top, at, before, after, self.max_norm if self.mode == "norm" else math.inf)
        draw_share(bottom, at, clipped)
        return [Section("Gradient norm before and after clipping", text, [drawn])]


class SmoothnessMonitor(Plugin):
    """Measure local smoothness along the steps taken, fit it against the gradient norm, suggest a
    threshold.

    Every few steps: the largest of ||grad(x + g d) - grad(x)|| / ||g d|| over points g of the step
    d just taken. The run stays bit-identical to one without this plugin.
    """

    citation: ClassVar[str] = _CITATION
    neutral: ClassVar[dict[str, Any]] = {}
    # Its projection is no part of the step that is measured.
    before: ClassVar[tuple[str, ...]] = ("spectral_rank",)

    every: int = Field(20, ge=1, description="optimizer steps from one measurement to the next")
    points: int = Field(
        1,
        ge=1,
        description="points inside the step at which the gradient is compared with its start",
    )
    batch: Literal["same"] | PositiveInt = Field(
        "same",
        description=(
            "examples: those of the step itself, or about so many from the start of the first "
            "epoch's order"
        ),
    )

    _start: list[Tensor] | None = PrivateAttr(default=None)
    _weights: tuple[float, ...] = PrivateAttr(default=())
    _window: list[Any] = PrivateAttr(default_factory=list)
    _fixed: list[Any] = PrivateAttr(default_factory=list)

    def _due(self, run: Run) -> bool:
        return (run.step + 1) % self.every == 0

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Read the fixed examples before training reads any: a stream of data gives one pass at
        a time.
        """
        if self.batch == "same":
            return
        stream, missing, position = run.data.train, self.batch, 0
        while missing > 0 and position < stream.steps_per_epoch:
            window = stream.window(0, position)
            self._weights += tuple(w * window.examples for w in window.weights)
            missing, position = missing - window.examples, position + 1
        self._fixed = list(islice(stream.batches(0, 0), len(self._weights)))
        self._weights = tuple(w / (self.batch - missing) for w in self._weights)

    @hookimpl(wrapper=True)
    def compute_loss(self, batch: Any, run: Run) -> Generator[None, Tensor, Tensor]:
        """Remember the micro-batches of a step that will be measured."""
        if self.batch == "same" and self._start is None and self._due(run):
            self._window.append(batch)
        return (yield)

    @hookimpl
    def before_optimizer_step(self, optimizer: Optimizer, run: Run) -> None:
        """Remember where a step that will be measured starts."""
        if self._due(run):
            self._start = snapshot(_parameters(optimizer))
            if self.batch == "same":
                position = run.step - run.epoch * run.data.train.steps_per_epoch
                self._weights = run.data.train.window(run.epoch, position).weights
                # Whatever else asked for a loss before this window did so earlier.
                self._window = self._window[-len(self._weights) :]

    @hookimpl
    def after_optimizer_step(self, model: nn.Module, run: Run) -> None:
        """Measure the step, if it was to be measured and the parameters have moved."""
        if self._start is None:
            return
        params = _parameters(run.optimizer)
        gradient = gradient_of(
            [partial(self._loss, model, batch, run) for batch in self._fixed or self._window],
            params,
            weights=self._weights,
            scale=run.device.scaler.get_scale(),
            held=run.untouched,
        )
        if run.device.world > 1:
            gradient = across_ranks(gradient)
        found = local_smoothness(gradient, params, self._start, grid=interior_grid(self.points))
        if found is not None:
            run.log.record("smoothness/smoothness", found.smoothness)
            run.log.record("smoothness/gradient_norm", found.gradient_norm)
            run.log.record("smoothness/step_norm", found.step_norm)
        self._start, self._window = None, []

    def _loss(self, model: nn.Module, batch: Any, run: Run) -> Tensor:
        if self._fixed:
            batch = run.hook.prepare_batch(batch=batch, run=run)
        return run.hook.compute_loss(model=model, batch=batch, run=run)

    def idle(self, run: Run) -> dict[str, str]:
        """Say that no step is measured."""
        return {"every": run.past_end(self.every)}

    def explain(self, run: Run) -> list[str]:
        """Say what is measured when, and what it costs."""
        examples = (
            "the step's own examples"
            if self.batch == "same"
            else f"about {self.batch} fixed examples"
        )
        return [
            (
                f"every {self.every} steps: {1 + self.points} gradients on {examples}; changes "
                "nothing in the run"
            ),
        ]

    def report(self, history: History) -> list[Section]:
        """Plot smoothness against gradient norm with the fitted line, and tabulate what follows
        from it.
        """
        steps, rows = history.together("smoothness/gradient_norm", "smoothness/smoothness")
        title = "Smoothness against gradient norm"
        try:
            fit = fit_l0_l1([g for g, _ in rows], [s for _, s in rows])
        except ValueError as error:
            return [Section(title, f"No line can be fitted to {len(rows)} measurements: {error}.")]
        _, observed = history.series("grad_clip/norm_before")
        usable = [
            (step, g, s)
            for step, (g, s) in zip(steps, rows, strict=True)
            if 0 < g < math.inf and 0 < s < math.inf
        ]
        at, norms, values = (list(column) for column in zip(*usable, strict=True))
        text = (
            "Each point is one measured step. Smoothness that grows with the gradient norm (slope "
            "and correlation near 1) is the condition under which clipped steps can be longer than "
            "any fixed step. Neighbouring points resemble each other, so read the intervals as too "
            "narrow."
        )
        drawn, axes = figure(width=5.4, height=3.6)
        drawn.colorbar(draw_scatter(axes, at, norms, values, fit), ax=axes, label="step", pad=0.02)
        return [Section(title, text, [drawn], fit_table(fit, observed or norms))]


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
