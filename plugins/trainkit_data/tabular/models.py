"""Plain networks for inputs that are no images, in timm's registry, so that a recipe names them as
any other model.

Importing this module registers `mlp` and `autoencoder`; `timm.create_model` makes them from then
on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from timm.layers import get_act_layer
from timm.models import register_model
from torch import Tensor, nn


class Mlp(nn.Module):
    """A multilayer perceptron: linear layers with an activation between them, under timm's names
    for a model's parts.

    Args:
        features: entries of one input; images are flattened.
        hidden: units of each hidden layer; none makes it a linear model.
        num_classes: outputs; 0 leaves the last hidden layer's units.
        act: timm's name of the activation, such as relu, sigmoid, gelu.
        batch_norm: normalise each hidden layer before its activation.
        drop_rate: dropout after each activation.

    Raises:
        ValueError: a number is out of range, or timm does not know the activation.
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int],
        num_classes: int,
        act: str = "relu",
        batch_norm: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if not all(type(units) is int and units > 0 for units in hidden):
            raise ValueError(
                f"hidden is a list of whole numbers above 0, such as [100, 100]; got {hidden!r}"
            )
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate is in [0, 1); got {drop_rate!r}")
        self.num_features = self.head_hidden_size = hidden[-1] if hidden else features
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        for inputs, units in zip([features, *hidden], hidden, strict=False):
            layers.append(nn.Linear(inputs, units))
            if batch_norm:
                layers.append(nn.BatchNorm1d(units))
            layers.append(_activation(act))
            if drop_rate:
                layers.append(nn.Dropout(drop_rate))
        self.layers = nn.Sequential(*layers)
        self.head: nn.Module
        self.reset_classifier(num_classes)
        # As in timm: where the model's first and last layers are.
        first = "head"
        if hidden:
            first = "layers.0"
        self.pretrained_cfg = self.default_cfg = {"first_conv": first, "classifier": "head"}

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a fresh one; `global_pool` is timm's argument, and here
        nothing is pooled.
        """
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer's units [N, num_features]."""
        out: Tensor = self.layers(x.flatten(1))
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the outputs [N, num_classes] from hidden units."""
        out: Tensor = x if pre_logits else self.head(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [N, num_classes] of inputs [N, F] or [N, C, H, W]."""
        return self.forward_head(self.forward_features(x))


def _activation(name: str) -> nn.Module:
    try:
        return cast(nn.Module, get_act_layer(name)())
    except (KeyError, TypeError):
        raise ValueError(
            f"timm has no activation {name!r}; relu, sigmoid, tanh, gelu and silu are some"
        ) from None


def _features(in_chans: int, img_size: int | Sequence[int] | None) -> int:
    size = (
        (1, 1)
        if img_size is None
        else (img_size, img_size)
        if isinstance(img_size, int)
        else img_size
    )
    return in_chans * math.prod(size)


def _refuse_pretrained(name: str, pretrained: bool) -> None:
    if pretrained:
        raise ValueError(f"there are no pretrained weights of {name}; leave pretrained out")


@register_model  # type: ignore[untyped-decorator]
def mlp(
    pretrained: bool = False,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | Sequence[int] | None = None,
    hidden: Sequence[int] = (100, 100),
    act: str = "relu",
    batch_norm: bool = False,
    drop_rate: float = 0.0,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    cache_dir: Any = None,
) -> Mlp:
    """Return an `Mlp` on rows of `in_chans` features, or with `img_size` on flattened images of as
    many channels.

    The last three arguments are timm's, which passes them to every model.
    """
    _refuse_pretrained("mlp", pretrained)
    return Mlp(_features(in_chans, img_size), hidden, num_classes, act, batch_norm, drop_rate)


@register_model  # type: ignore[untyped-decorator]
def autoencoder(
    pretrained: bool = False,
    *,
    num_classes: int = 0,
    in_chans: int = 3,
    img_size: int | Sequence[int] | None = None,
    hidden: Sequence[int] = (100,),
    act: str = "sigmoid",
    drop_rate: float = 0.0,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    cache_dir: Any = None,
) -> Mlp:
    """Return an `Mlp` with as many outputs as inputs: of ratings, AutoRec (Sedhain et al. 2015,
    equation 2).

    The last three arguments are timm's, which passes them to every model.

    Raises:
        ValueError: `num_classes` is neither 0 nor the number of inputs.
    """
    _refuse_pretrained("autoencoder", pretrained)
    features = _features(in_chans, img_size)
    if num_classes not in (0, features):
        raise ValueError(
            f"an autoencoder of {features} inputs has {features} outputs, and the data want "
            f"{num_classes}; take mlp"
        )
    return Mlp(features, hidden, features, act, False, drop_rate)
