"""`meta_dropout`: noise on the support set of every task, whose size is meta-learned, as a
plugin of `maml`.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

from trainkit import Plugin, Run, hookimpl

from ..maml.plugin import Maml
from .attach import NAME, attach
from .noise import MetaDropout as Noise

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trainkit import Batch


class MetaDropout(Plugin):
    """Disturb what a task adapts on, as learned: gates on the layers, additive noise on the logits.

    Every gated layer's output is multiplied by softplus(m + eps) in the inner loop and by
    softplus(m) elsewhere; m is computed from the layer's input by a layer of the same shape. These
    further layers are meta-learned with the initial parameters and never adapted to a task.
    """

    citation: ClassVar[str] = """\
@inproceedings{lee2020metadropout,
  title={Meta Dropout: Learning to Perturb Latent Features for Generalization},
  author={Lee, Hae Beom and Nam, Taewook and Yang, Eunho and Hwang, Sung Ju},
  booktitle={International Conference on Learning Representations},
  year={2020}
}"""
    neutral: ClassVar[dict[str, Any]] = {"mode": "off"}
    requires: ClassVar[tuple[str, ...]] = ("maml",)
    after: ClassVar[tuple[str, ...]] = ("maml",)

    mode: Literal["sample", "mean", "off"] = Field(
        "sample",
        description=(
            "sample: the method; mean: its gates without any noise, the control that tells what the"
            " noise itself does; off: plain maml"
        ),
    )
    sites: Literal["auto"] | list[str] = Field(
        "auto",
        description=(
            "layers to gate: those before a norm (convolutions) or an activation (linear layers), "
            "or patterns of their names, such as [layer4.*.conv2]"
        ),
    )
    init: Literal["auto", "paper", "unit"] = Field(
        "auto",
        description=(
            "paper: gates near 0.69; unit: of exactly 1, the network as it was; auto: unit for "
            "pretrained weights and where no norm follows, paper elsewhere"
        ),
    )
    head_noise: bool = Field(True, description="also disturb the logits; only in mode sample")
    test_samples: int = Field(
        30,
        ge=1,
        description=(
            "noisy losses averaged at every inner step of a test task; 1 in training and validation"
        ),
    )

    @hookimpl(wrapper=True)
    def build_model(self, run: Run) -> Generator[None, nn.Module, nn.Module]:
        """Add the parameters of the noise."""
        import torch

        model = yield
        if self.mode == "off":
            return model
        recipe = run.recipe
        if recipe.train.grad_checkpointing:
            why = (
                f"{self.name} would draw other noise when a block is computed a second time; set "
                "it to false, and checkpoint_steps of maml"
            )
            self.refuse(run, "grad_checkpointing", why, section="train")
        trained = recipe.model.pretrained or recipe.model.checkpoint is not None
        try:
            attach(
                model,
                torch.zeros(2, *run.data.input_size),
                sites=self.sites,
                init="unit" if trained and self.init == "auto" else self.init,
                logits=self.head_noise and self.mode == "sample",
                generator=self.generator(),
            )
        except ValueError as error:
            self.refuse(run, "", str(error))
        return model

    @hookimpl(wrapper=True)
    def plan_task(
        self, support: Batch, phase: str, draw: int, run: Run
    ) -> Generator[None, Any, Any]:
        """Give the task a stream of noise of its own."""
        plan = yield
        if self.mode != "sample":
            return plan
        extras = {**plan.extras, self.name: self._stream(support, phase, draw, run)}
        samples = self.test_samples if phase == "test" else plan.inner_samples
        return replace(plan, extras=extras, inner_samples=samples)

    def _stream(self, support: Batch, phase: str, draw: int, run: Run) -> torch.Generator:
        """Return the task's own generator, on the device of its images."""
        import torch

        seed = run.plugin(Maml).task_seed(self, support, phase, draw, run)
        return torch.Generator(support.inputs.device).manual_seed(seed)

    @hookimpl(wrapper=True)
    def inner_loss(self, model: nn.Module, plan: Any) -> Generator[None, Tensor, Tensor]:
        """Draw noise while the support loss is computed."""
        if self.mode != "sample":
            return (yield)
        with _noise(model).sampling(plan.extras[self.name]):
            return (yield)

    def explain(self, run: Run) -> list[str]:
        """Say which layers are gated and at what size."""
        if self.mode == "off":
            return ["off: plain maml"]
        noise = _noise(run.model)
        count = sum(p.numel() for p in noise.parameters())
        shown = ", ".join(noise.sites[:4]) + (
            f" … {noise.sites[-1]}" if len(noise.sites) > 4 else ""
        )
        lines = [
            f"gates {len(noise.sites)} layers ({shown}); {count:,} parameters of the noise, never "
            "adapted"
        ]
        if self.mode == "mean":
            return [*lines, "mean: no noise is drawn"]
        lines.append(
            f"noisy losses averaged at each inner step: 1 in training, {self.test_samples} in the "
            "test"
        )
        if noise.logits is not None and getattr(run.plugins.get("maml"), "order", None) == "first":
            lines.append(
                "maml's order: first gives the noise on the logits no gradient: it stays as large "
                "as drawn"
            )
        return lines


def _noise(model: nn.Module) -> Noise:
    return cast(Noise, cast(Any, model).meta[NAME])
