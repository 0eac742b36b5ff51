"""`learning_to_balance`: MAML with class weights, step multipliers and initial parameters inferred for each task."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, PositiveInt, PrivateAttr, model_validator
from timm.models import group_with_matcher
from torch import Tensor, nn

from trainkit import Batch, History, Plugin, Run, Section, UserError, figure, hookimpl

from .balance import balance, inverse_frequency
from .encoder import InferenceNetwork
from .layout import Layout, lay_out
from .plots import draw_multipliers, draw_weights, multiplier_table, weight_table
from .posterior import Latents, Posterior
from .tendencies import multipliers_by_size, weights_by_shots

_CITATION = """\
@inproceedings{lee2020learning,
  title={Learning to Balance: Bayesian Meta-Learning for Imbalanced and Out-of-distribution Tasks},
  author={Lee, Hae Beom and Lee, Hayeon and Na, Donghyun and Kim, Saehoon and Park, Minseop and Yang, Eunho and Hwang, Sung Ju},
  booktitle={International Conference on Learning Representations},
  year={2020}
}"""  # noqa: E501
_NATS = 0.1067
"""Divergence of one latent as initialized: mean 0, deviation ln 2."""


class LearningToBalance(Plugin):
    """Infer from each task's support set what it needs: class weights, step multipliers, modulated initial parameters.

    An inference network sees the support images and gives normal posteriors over the latents of three balancing
    variables. In training one draw of them is used and their divergence from the prior is added to the task's loss, in
    validation their mean, in the test several draws whose predictions are averaged.
    """

    citation: ClassVar[str] = _CITATION
    neutral: ClassVar[dict[str, Any]] = {"omega": "uniform", "gamma": False, "z": False}
    requires: ClassVar[tuple[str, ...]] = ("maml",)
    after: ClassVar[tuple[str, ...]] = ("maml",)
    before: ClassVar[tuple[str, ...]] = ("meta_sgd",)  # outermost: multiplies the step sizes that are learned there

    omega: Literal["learned", "inverse", "uniform"] = Field(
        "learned", description="class weights in the inner loss: inferred, proportional to 1/shots, or all alike"
    )
    gamma: bool = Field(True, description="whether the step sizes of each group of layers get an inferred multiplier")
    z: bool = Field(True, description="whether initial parameters are modulated per output channel, as inferred")
    max_shot: PositiveInt | None = Field(
        None, ge=2, description="examples of a class at which its cardinality is 1; default: max_shot of maml"
    )
    draws: PositiveInt = Field(10, description="draws of the latents at test, whose probabilities are averaged")
    kl_weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="what the divergence is multiplied by")
    groups: Literal["blocks", "stages"] = Field(
        "blocks", description="layers that share a multiplier: timm's fine or coarse groups of the model"
    )
    z_layers: Literal["all", "last_stage", "norms"] = Field(
        "all", description="what is modulated: convolutions and linear layers, those of the last stage, or the norms"
    )
    z_scale: float = Field(1.0, gt=0, allow_inf_nan=False, description="how far a latent of 1 moves a channel")

    _layout: Layout = PrivateAttr(default_factory=Layout)
    _divergences: dict[str, list[Tensor]] = PrivateAttr(default_factory=dict)
    _seen: dict[str, list[Tensor]] = PrivateAttr(default_factory=dict)
    _test_noise: torch.Generator | None = PrivateAttr(default=None)

    @property
    def _infers(self) -> bool:
        return self.omega == "learned" or self.gamma or self.z
