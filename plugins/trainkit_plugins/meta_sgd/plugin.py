"""`meta_sgd`: learned step sizes as a plugin of `maml`."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from trainkit import History, Plugin, Run, Section, figure, hookimpl

from ..maml.plugin import Maml
from .step_sizes import Per, StepSizes


class MetaSgd(Plugin):
    """Meta-learn the step sizes of the inner loop along with the initial parameters.

    One for each entry of a parameter (Meta-SGD), each tensor, or each layer; of either sign; the
    same at every inner step or, as in MAML++, one for each.
    """

    citation: ClassVar[str] = """\
@article{li2017metasgd,
  title={Meta-SGD: Learning to Learn Quickly for Few-Shot Learning},
  author={Li, Zhenguo and Zhou, Fengwei and Chen, Fei and Li, Hang},
  journal={arXiv:1707.09835},
  year={2017}
}"""
    requires: ClassVar[tuple[str, ...]] = ("maml",)
    after: ClassVar[tuple[str, ...]] = ("maml",)

    per: Per = Field(
        "element", description="what has a step size of its own: each element, tensor or layer"
    )
    initial: float | None = Field(
        None,
        allow_inf_nan=False,
        gt=0,
        le=1e6,
        description=(
            "where every step size starts; null: at maml's inner_lr (the mean loss, as there)"
        ),
    )
    each_step: bool = Field(False, description="learn separate step sizes for every inner step")

    @hookimpl(wrapper=True)
    def build_model(self, run: Run) -> Generator[None, nn.Module, nn.Module]:
        """Put the step sizes into the model, so that they are optimised, saved and moved with
        it.
        """
        model = yield
        maml = run.plugin(Maml)
        if self.per == "element" and maml.ways_of("train") != maml.ways and maml.adapt != "body":
            why = (
                f"the classifier of a training task has {maml.train_ways} classes and that of a "
                f"test task {maml.ways}, so its elements cannot have step sizes; set per to tensor "
                "or layer, or drop train_ways of maml"
            )
            self.refuse(run, "per", why)
        params = {name: model.get_parameter(name) for name in maml.adapted(model)}
        steps = maml.steps if self.each_step else 0
        meta = getattr(model, "meta", None) or nn.ModuleDict()
        meta[self.name] = StepSizes(
            params, self.per, maml.inner_lr if self.initial is None else self.initial, steps
        )
        cast(Any, model).meta = meta
        return model

    @hookimpl(wrapper=True)
    def plan_task(self, run: Run) -> Generator[None, Any, Any]:
        """Give the task's plan the step sizes learned so far."""
        plan = yield
        sizes = self._sizes(run)
        if not sizes.steps:
            return replace(plan, step_sizes=sizes.at())
        one = next(iter(plan.params.values())).new_ones(())
        scales = [sizes.at(step) for step in range(sizes.steps)]
        return replace(plan, step_sizes=dict.fromkeys(plan.adapt, one), step_scales=scales)

    def _sizes(self, run: Run) -> StepSizes:
        return cast(StepSizes, cast(Any, run.model).meta[self.name])

    @hookimpl
    def before_optimizer_step(self, optimizer: Optimizer, run: Run) -> None:
        """Log the mean step size, and the share of negative ones."""
        flat = torch.cat([value.detach().flatten() for value in self._sizes(run).values])
        run.log.record("meta_sgd/mean", flat.mean())
        run.log.record("meta_sgd/negative", (flat < 0).float().mean())

    def explain(self, run: Run) -> list[str]:
        """Say how many step sizes there are, and where they start."""
        values = list(self._sizes(run).values)
        count = sum(value.numel() for value in values)
        each = (
            f", for each of {self._sizes(run).steps} inner steps" if self._sizes(run).steps else ""
        )
        return [
            f"{count:,} step sizes, one per {self.per}{each}; start at "
            f"{float(values[0].detach().mean()):g}"
        ]

    def report(self, history: History) -> list[Section]:
        """Plot the mean step size along training."""
        at, mean = history.series("meta_sgd/mean")
        if not at:
            return []
        _, negative = history.series("meta_sgd/negative")
        drawn, axes = figure(width=5.4, height=3.0)
        axes.plot(at, mean)
        axes.set(xlabel="step", ylabel="mean step size")
        text = (
            f"At the end {negative[-1]:.1%} of the step sizes were negative, and their mean was "
            f"{mean[-1]:.4g}."
        )
        return [Section("Learned step sizes", text, [drawn])]
