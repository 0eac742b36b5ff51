"""A monitor: the norm of every layer's gradient, and a picture of them in the report."""

import torch
from pydantic import Field

from trainkit import Plugin, Section, figure, hookimpl


class LayerNorms(Plugin):
    """Log the gradient norm of each weight matrix and kernel, and plot them over the steps."""

    citation = ""
    neutral = {}  # a monitor: the run is the same without it
    every: int = Field(10, ge=1, description="steps from one measurement to the next")

    @hookimpl
    def before_optimizer_step(self, model, run):
        """Measure; nothing here waits for the device."""
        if run.step % self.every:
            return
        named = [(n, p) for n, p in model.named_parameters() if p.ndim > 1 and p.grad is not None]
        norms = torch._foreach_norm([p.grad for _, p in named])
        for (name, _), norm in zip(named, norms, strict=True):
            run.log.record(f"layer_norms/{name}", norm)

    def report(self, history):
        """Draw one line per layer, from blue at the input to yellow at the output."""
        names = [name for name in history.names if name.startswith("layer_norms/")]
        if not names:
            return []
        drawn, axes = figure(width=9.6, height=3.6)
        axes.set(xlabel="step", ylabel="norm of the gradient", yscale="log")
        for i, name in enumerate(names):
            color = ((i + 1) / len(names), (i + 1) / len(names), 1 - i / len(names))
            axes.plot(*history.series(name), color=color, label=name.removeprefix("layer_norms/"))
        if len(names) <= 12:
            axes.legend(fontsize=6)
        return [Section("Gradient norm of each layer", f"{len(names)} layers.", [drawn])]
