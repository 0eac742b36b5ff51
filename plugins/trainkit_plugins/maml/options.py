"""What `maml` may be told, and which of it goes together."""

from __future__ import annotations

from typing import Any, Literal

import timm
from pydantic import Field, model_validator

from .conv4 import conv4
from .episodic import Episodic
from .head import Head
from .isolation import Adapt, NormStatistics


class MamlOptions(Episodic):
    """The options of `maml`, beside those of its tasks."""

    steps: int = Field(
        5, ge=0, le=10_000, description="gradient steps of the inner loop in training"
    )
    test_steps: int | None = Field(
        None, ge=0, le=10_000, description="and in validation and test; null: as many"
    )
    inner_lr: float = Field(
        0.4,
        ge=0,
        le=1e6,
        description=(
            "step size of the inner loop, on the mean loss; Finn et al. divide a sum by the shots "
            "alone, so that their 0.4 for 5 ways is 2.0 here"
        ),
    )
    order: Literal["second", "first"] = Field(
        "second",
        description=(
            "second: differentiate through the inner gradients; first: take them as constants"
        ),
    )
    adapt: Adapt = Field(
        "all", description="what the inner loop moves: all, head or body; norms never"
    )
    head: Head = Field(
        "learned",
        description=(
            "what the classifier of a task starts from: what is meta-learned, zero (which treats "
            "all classes alike), or prototypes (the mean features of the support set's classes: "
            "Proto-MAML)"
        ),
    )
    prototype_scale: float = Field(
        1.0,
        gt=0,
        le=1e6,
        description=(
            "with head: prototypes, what squared distances are multiplied by to make logits"
        ),
    )
    norm_statistics: NormStatistics = Field(
        "batch",
        description=(
            "what batch norms normalise with: batch (the query set as a whole: transductive), "
            "support (its statistics, also for the query), running (the model's averages, which "
            "stay), per_step (batch, with norm parameters of their own for each step)"
        ),
    )
    norm_eps: float | None = Field(
        None, gt=0, le=1, description="eps of every batch norm; null: the model's own"
    )
    multi_step_epochs: int = Field(
        0,
        ge=0,
        description=(
            "epochs over which the query loss moves from all inner steps alike to the last one "
            "alone"
        ),
    )
    max_inner_norm: float | None = Field(
        None, gt=0, description="clip the joint norm of each inner gradient"
    )
    max_meta_value: float | None = Field(
        None, gt=0, description="clip each entry of the meta-gradient, after averaging over tasks"
    )
    checkpoint_steps: bool = Field(
        False, description="compute inner steps again in the backward pass, keep no graph"
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="tasks computed at once; null: on a CPU one per thread that torch may use",
    )

    @model_validator(mode="before")
    @classmethod
    def _offer_conv4(cls, options: Any) -> Any:
        """Give the recipes that turn maml on, and no others, the papers' network by its name.

        This comes before the options are checked: a mistake in them hides no model.
        """
        if not timm.is_model("conv4"):
            timm.models.register_model(conv4)
        return options

    @model_validator(mode="after")
    def _check(self) -> MamlOptions:
        if self.norm_statistics == "per_step" and self.steps == 0:
            raise ValueError("norm_statistics: per_step needs steps of at least 1")
        if self.multi_step_epochs and self.steps < 2:
            raise ValueError("multi_step_epochs does nothing with fewer than 2 steps; drop it")
        if self.head == "zero" and (self.adapt == "body" or self.steps == 0):
            raise ValueError(
                "head: zero never learns a classifier with adapt: body or without steps; change one"
            )
        if self.head == "learned" and self.ways_of("train") != self.ways:
            raise ValueError(
                "train_ways: a learned classifier has as many classes as ways; set head to another"
            )
        return self
