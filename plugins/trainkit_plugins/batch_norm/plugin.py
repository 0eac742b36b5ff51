"""Three changes to batch norm as plugins; the fourth is in norm_decay. They set fields of the same
layers, so any of them go together.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from trainkit import History, Plugin, Run, Section, figure, hookimpl, to_json, write_text

from .alphas import ALPHAS, Point, evaluating, sweep
from .choice import Metric
from .functional import Blocks
from .grouping import described_blocks, described_groups, layers_by_groups
from .paper import CITATION
from .plots import curve_table, draw_curves
from .surgery import convert_batch_norm, converted_layers
from .worth import tune


class _Summers(Plugin):
    """What the three share: the paper, and how they convert a model."""

    citation: ClassVar[str] = CITATION

    def _convert(self, model: nn.Module, run: Run, **fields: Any) -> None:
        if run.recipe.train.sync_batchnorm:
            self.refuse(
                run, "", "train.sync_batchnorm puts torch's own layer in its place; set it to false"
            )
        try:
            convert_batch_norm(model, **fields)
        except ValueError as error:
            self.refuse(run, "", str(error))

    def _limit(self, model: nn.Module, run: Run, examples: int | None, **fields: Any) -> None:
        """Let no statistic take in more than `examples` examples; what already limits it more
        stays.
        """
        sizes = {layer.ghost_size for layer in converted_layers(model).values()} | {examples}
        self._convert(
            model, run, ghost_size=min((s for s in sizes if s is not None), default=None), **fields
        )

    def _blocks(self, run: Run) -> str:
        first, *others = converted_layers(run.model).values()
        return (
            f"{1 + len(others)} batch norms: "
            f"{described_blocks(_micro_batch(run), first.ghost_size, first.blocks)}"
        )


def _micro_batch(run: Run) -> int:
    """Return how many inputs a full micro-batch has on one rank."""
    examples = run.data.train.examples_per_step // (run.recipe.train.accumulate * run.device.world)
    return examples * run.data.aug_splits


class GhostBatchNorm(_Summers):
    """Normalize small blocks of each batch by themselves: ghost batch norm.

    In training each block of `size` examples has its own mean and variance, which regularises;
    running statistics, and so evaluation, are those of whole batches. A block lies within one
    micro-batch on one rank: accumulation and more ranks make more blocks, never larger ones.
    """

    neutral: ClassVar[dict[str, Any]] = {"size": None}

    size: int | None = Field(
        16, ge=1, description="examples that share statistics; null: the whole micro-batch"
    )
    blocks: Blocks = Field(
        "any",
        description=(
            "which examples: strided (every n-th), consecutive (as in the authors' code), or the "
            "cheaper"
        ),
    )

    @hookimpl(wrapper=True)
    def build_model(self, run: Run) -> Generator[None, nn.Module, nn.Module]:
        """Convert the batch norms and set their size of blocks."""
        model = yield
        self._limit(model, run, self.size, blocks=self.blocks)
        return model

    @hookimpl
    def on_fit_start(self, run: Run) -> None:
        """Say so where no batch is large enough to be divided."""
        if self.size is not None and _micro_batch(run) <= self.size:
            run.log.note(
                f"{self.name}: a micro-batch has {_micro_batch(run)} examples, not more than size "
                f"{self.size}, and is one block, as in plain batch norm; raise data.batch_size or "
                "lower size"
            )

    def explain(self, run: Run) -> list[str]:
        """Say how each batch is divided."""
        return [self._blocks(run)]


class BatchGroupNorm(_Summers):
    """Share statistics among few examples and groups of channels: batch/group norm, for tiny
    batches.

    In training a statistic takes in `examples` examples and the channels of a group; in evaluation
    it is the running statistics averaged over the group. Channels that the number of groups does
    not divide get the largest number below it that does. Weights and statistics of a pretrained
    model are kept.
    """

    neutral: ClassVar[dict[str, Any]] = {"channel_groups": None, "examples": None}

    channel_groups: int | None = Field(
        32,
        ge=1,
        description="groups of neighbouring channels in each layer; null: each channel by itself",
    )
    examples: int | None = Field(
        2,
        ge=1,
        description=(
            "examples that share statistics; null: the whole micro-batch; 1 is group norm in "
            "training"
        ),
    )

    @hookimpl(wrapper=True)
    def build_model(self, run: Run) -> Generator[None, nn.Module, nn.Module]:
        """Convert the batch norms and set their groups and size of blocks."""
        model = yield
        self._limit(model, run, self.examples)
        for groups, names in layers_by_groups(model, self.channel_groups).items():
            self._convert(model, run, channel_groups=groups, only=names)
        return model

    def explain(self, run: Run) -> list[str]:
        """Say what shares statistics, and in which layers there are fewer groups."""
        groups = described_groups(
            layers_by_groups(run.model, self.channel_groups), self.channel_groups
        )
        return [self._blocks(run), *groups]


class ExampleWeighing(_Summers):
    """Let each example weigh in its own statistics at inference: moments (1 - alpha) running +
    alpha its own.

    Nothing changes in training. With `tune` alpha is 0 until training is over; then it is chosen on
    the validation data for the best weights, and written to example_weighing.json, the notes and
    the report. The weights stay timm's, which knows no alpha: `convert_batch_norm(model,
    example_weight=alpha)` puts it back.
    """

    neutral: ClassVar[dict[str, Any]] = {"alpha": 0.0}
    # Ema takes the weights that were validated out of the model.
    before: ClassVar[tuple[str, ...]] = ("ema",)

    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["tune"] = Field(
        "tune",
        description="weight of the example; tune: choose it on the validation data after training",
    )
    metric: Metric = Field("nll", description="tune: what the best alpha is best in")

    _chosen: float | None = PrivateAttr(default=None)
    _weights: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    @hookimpl(wrapper=True)
    def build_model(self, run: Run) -> Generator[None, nn.Module, nn.Module]:
        """Convert the batch norms and set their alpha."""
        model = yield
        self._convert(
            model, run, example_weight=max(ALPHAS) if self.alpha == "tune" else self.alpha
        )
        if self.alpha == "tune":
            self._convert(model, run, example_weight=0.0)
        elif self.alpha > 0:
            run.log.note(
                f"{self.name}: validated with alpha {self.alpha:g}. The weights are timm's, which "
                f"evaluates with 0; convert_batch_norm(model, example_weight={self.alpha:g}) gives "
                "these metrics"
            )
        return model

    @hookimpl
    def on_best(self, model: nn.Module) -> None:
        """Remember the weights that the run keeps as its best."""
        if self.alpha == "tune":
            self._weights = {
                name: tensor.detach().to("cpu", copy=True)
                for name, tensor in model.state_dict().items()
            }

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        """Tune after the last epoch, before the checkpoint that shall hold alpha is written."""
        if run.epoch + 1 == run.recipe.train.epochs or run.stop_reason:
            self._tune(run)

    @hookimpl
    def on_fit_end(self, run: Run) -> None:
        """Tune where another plugin ended training later in its last epoch."""
        self._tune(run)

    def _tune(self, run: Run) -> None:
        if self.alpha != "tune" or self._chosen is not None:
            return
        evaluate = partial(run.hook.evaluate_batch, model=run.model, run=run)
        # Compiled code would be compiled anew for every alpha.
        eager = (
            torch.compiler.set_stance("force_eager") if run.recipe.train.compile else nullcontext()
        )
        with evaluating(run.model, self._weights), eager:
            mine = sweep(run.model, run.data.val, lambda batch: evaluate(batch=batch), ALPHAS)
        self._chosen, self._weights = 0.0, {}
        try:
            found = tune(torch.cat(run.device.gather(mine), dim=2), ALPHAS, self.metric)
        except ValueError as error:
            run.log.note(f"{self.name}: alpha stays 0: {error}")
            return
        self._chosen = found.alpha
        run.log.note(f"{self.name}: {found.summary()}")
        for name, values in found.columns().items():
            run.log.record(f"{self.name}/{name}", values)
        run.log.record(f"{self.name}/chosen", found.alpha)
        if run.folder is not None:
            write_text(
                run.folder / "example_weighing.json", to_json(found.facts(), indent=2) + "\n"
            )

    def at_its_end(self, run: Run) -> str:
        """Say that alpha has been chosen."""
        return "has chosen alpha at the end of training" if self._chosen is not None else ""

    def state_dict(self) -> dict[str, Any]:
        """Return the chosen alpha, or until there is one the best weights so far."""
        return {"chosen": self._chosen, "weights": dict(self._weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them back."""
        self._chosen, self._weights = state["chosen"], dict(state["weights"])

    def explain(self, run: Run) -> list[str]:
        """Say what alpha is, or how it will be found."""
        tried = ", ".join(f"{alpha:g}" for alpha in ALPHAS)
        tuned = (
            f"0 until training is over, then that of {tried} best in {self.metric}, if not by "
            "chance"
        )
        layers = converted_layers(run.model)
        alpha = tuned
        if self.alpha != "tune":
            alpha = f"{self.alpha:g}"
        return [f"alpha of {len(layers)} batch norms in evaluation: {alpha}"]

    def report(self, history: History) -> list[Section]:
        """Plot and tabulate what each alpha gives."""
        names = (
            f"{self.name}/{n}" for n in ("chosen", "alpha", "accuracy", "nll", "calibration_error")
        )
        _, rows = history.together(*names)
        if not rows:
            return []
        chosen, *columns = rows[-1]
        curve = [Point(*values) for values in zip(*columns, strict=True)]
        drawn, axes = figure(1, 3, height=2.9)
        draw_curves(axes, chosen, {"validation": curve})
        text = (
            "The best weights, validated with each alpha. What the choice is worth on other data is"
            " in the notes."
        )
        return [Section("Alpha at inference", text, [drawn], curve_table(curve, chosen))]
