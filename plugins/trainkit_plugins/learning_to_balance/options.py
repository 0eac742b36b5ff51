"""What `learning_to_balance` may be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from trainkit import Plugin


class BalanceOptions(Plugin):
    """The options of `learning_to_balance`."""

    omega: Literal["learned", "inverse", "uniform"] = Field(
        "learned",
        description=(
            "class weights in the inner loss: inferred, proportional to 1/shots, or all alike"
        ),
    )
    gamma: bool = Field(
        True,
        description="whether the step sizes of each group of layers get an inferred multiplier",
    )
    z: bool = Field(
        True, description="whether initial parameters are modulated per output channel, as inferred"
    )
    max_shot: PositiveInt | None = Field(
        None,
        ge=2,
        description="examples of a class at which its cardinality is 1; default: max_shot of maml",
    )
    draws: int = Field(
        10,
        ge=0,
        description=(
            "draws of the latents at test, whose probabilities are averaged; 0 takes the mean "
            "instead"
        ),
    )
    kl_weight: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="what the divergence is multiplied by"
    )
    groups: Literal["blocks", "stages"] = Field(
        "blocks",
        description="layers that share a multiplier: timm's fine or coarse groups of the model",
    )
    z_layers: Literal["all", "last_stage", "norms"] = Field(
        "all",
        description=(
            "what is modulated: convolutions and linear layers, those of the last stage, or the "
            "norms"
        ),
    )
    z_scale: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="how far a latent of 1 moves a channel"
    )
