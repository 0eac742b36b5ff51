"""The parts of a model that techniques ask for, as timm's models name them."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any, cast

from torch import nn


def classifiers(model: nn.Module) -> list[str]:
    """Return the names of the layers that give the class scores; two with distillation.

    None for a model without classes, or one that neither `pretrained_cfg` nor `get_classifier`
    speaks for.
    """
    # A model without classes has an Identity in the classifier's place.
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if any(True for _ in module.parameters()):
            layers[name] = module
    found = [name for name in _noted(model, "classifier") if name in layers]
    if not found and hasattr(model, "get_classifier"):
        head = cast(Any, model).get_classifier()
        heads = head if isinstance(head, tuple | list) else [head]
        found = [name for name, module in layers.items() if any(module is h for h in heads)]
    return found


def first_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers that read the input; none where the model does not say."""
    return _noted(model, "first_conv")


def decaying_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return by name what weight decay usually applies to, trained or not: matrices and kernels.

    No vectors, scalars or biases, nor what the model itself exempts, as in timm.
    """
    exempt = exempt_names(model)
    found: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not name.endswith(".bias") and name not in exempt:
            found[name] = parameter
    return found


def exempt_names(model: nn.Module) -> set[str]:
    """Return the names of the parameters that a model itself exempts from weight decay.

    Its `no_weight_decay` gives names, or patterns with * and ? (XCiT's `pos_embed.*`), which timm
    reads as in file names (`timm.optim.param_groups_weight_decay`).
    """
    if not hasattr(model, "no_weight_decay"):
        return set()
    patterns = list(cast(Any, model).no_weight_decay())
    names = [name for name, _ in model.named_parameters()]
    return {name for name in names for pattern in patterns if fnmatch(name, pattern)}


def _noted(model: nn.Module, key: str) -> list[str]:
    names = (getattr(model, "pretrained_cfg", None) or {}).get(key) or ()
    return [names] if isinstance(names, str) else list(names)
