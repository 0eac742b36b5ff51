"""Give a model the noise of Meta Dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from .noise import (
    Gate,
    LogitNoise,
    MetaDropout,
    Switch,
    init_logits,
    init_paper,
    init_unit,
    noise_layer,
)
from .sites import choose, probe

Init = Literal["auto", "paper", "unit"]
NAME = "meta_dropout"


def attach(
    model: nn.Module,
    example: Tensor,
    *,
    sites: Literal["auto"] | Sequence[str] = "auto",
    init: Init = "auto",
    logits: bool = True,
    generator: torch.Generator | None = None,
) -> MetaDropout:
    """Gate layers of `model` through forward hooks, and keep the parameters phi in
    `model.meta["meta_dropout"]`.

    The layers themselves and their names stay as they are. Parameters of the noise are every one
    whose name begins with `meta.`: train them with the others, but do not adapt them to a task.

    Args:
        model: with Conv2d or Linear layers; timm's, for noise on the logits (`get_classifier`).
        example: inputs [N, C, H, W] of the size to come; a copy of the model is run on them once.
        sites: `auto`, or patterns of the names of layers to gate.
        init: `paper`: weights near 0 and mean gates near 0.69; `unit`: mean gates of exactly 1;
            `auto`: `paper` where a norm follows, which takes a constant factor back, and `unit`
            elsewhere.
        logits: also disturb the logits, with a deviation learned per example.
        generator: what the initial weights are drawn from.

    Returns:
        The noise. Its `sampling` is to be on in the inner loop.

    Raises:
        ValueError: nothing to gate, no such layers, or a classifier whose logits cannot be
            disturbed.
    """
    if isinstance(model, nn.Sequential):
        raise ValueError(
            "nn.Sequential would call its noise as one more layer; wrap it in a module of its own"
        )
    if NAME in getattr(model, "meta", ()):
        raise ValueError("the model has the noise of Meta Dropout already")
    found = choose(model, probe(model, example), sites)
    classifier = _classifier(model) if logits else None
    switch = Switch()
    gates = {}
    for site in found:
        layer = cast("nn.Conv2d | nn.Linear", model.get_submodule(site.name))
        phi = [noise_layer(layer) for _ in range(site.calls)]
        for one in phi:
            if init == "unit" or (init == "auto" and site.reader != "norm"):
                init_unit(one)
            else:
                init_paper(one, generator)
        gates[site.name] = Gate(phi, switch)
        layer.register_forward_hook(gates[site.name].hook)
    noise = MetaDropout(gates, _logit_noise(classifier, switch, generator), switch)
    model.register_forward_pre_hook(noise.begin)
    if not hasattr(model, "meta"):
        model.meta = nn.ModuleDict()
    cast(nn.ModuleDict, model.meta)[NAME] = noise
    return noise


def _classifier(model: nn.Module) -> nn.Linear:
    layer = None
    if hasattr(model, "get_classifier"):
        layer = model.get_classifier()  # type: ignore[operator]
    if isinstance(layer, nn.Linear):
        return layer
    what = "none that timm would name"
    if layer is not None:
        what = type(layer).__name__
    raise ValueError(
        f"noise on the logits needs one linear classifier, and this model's is {what}; "
        "go without it (head_noise: false)"
    )


def _logit_noise(
    classifier: nn.Linear | None, switch: Switch, generator: torch.Generator | None
) -> LogitNoise | None:
    if classifier is None:
        return None
    weight = classifier.weight
    phi = nn.Linear(classifier.in_features, 1, device="meta", dtype=weight.dtype).to_empty(
        device=weight.device
    )
    init_logits(phi, generator)
    noise = LogitNoise(phi, switch)
    classifier.register_forward_hook(noise.hook)
    return noise
