"""How a task's classifier starts: as meta-learned, at zero, or as the prototypes of the task's own
support set.

Prototypes (Proto-MAML: Triantafillou et al. 2020, "Meta-Dataset", after Snell et al. 2017). With
c_k the mean feature of class k and f a query's, squared distances are a linear classifier, up to
what all classes share:

    -|f - c_k|^2 = 2 c_k . f - |c_k|^2 - |f|^2        so  w_k = 2 s c_k,  b_k = -s |c_k|^2

with a scale s, which is 1 in both papers. The meta-gradient flows through c_k; the inner gradient
does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ..common.precision import promoted
from .forward import predict
from .isolation import head_names
from .plan import Examples

Head = Literal["learned", "zero", "prototypes"]


def linear_head(model: nn.Module) -> tuple[str, nn.Linear]:
    """Return the name and the module of a model's classifier.

    Raises:
        ValueError: it is not one linear layer with a bias.
    """
    head_names(model)  # says what is wrong with a model that does not name its classifier
    head = cast(Any, model).get_classifier()
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise ValueError(
            f"the classifier of {type(model).__name__} is not one linear layer with a bias"
        )
    return next(name for name, module in model.named_modules() if module is head), head


def initial_head(
    model: nn.Module,
    params: Mapping[str, Tensor],
    support: Examples,
    head: Head,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Return the classifier's parameters that a task starts from, as many classes as its support
    set has.

    Args:
        model: a copy from `isolate`.
        params: theta_0, by the model's names.
        support: every class has at least one example. The forward pass is that of the inner loop.
        head: ``learned`` returns nothing: the classifier is the model's.
        scale: s.

    Raises:
        ValueError: the classifier is not one linear layer with a bias, and `head` is
            ``prototypes``.
    """
    if head == "learned":
        return {}
    ways = int(support.targets.max()) + 1  # waits for the device, once a task
    if head == "zero":
        return {
            name: params[name].new_zeros((ways, *params[name].shape[1:]))
            for name in sorted(head_names(model))
        }
    name, classifier = linear_head(model)
    centres = class_means(
        features(model, classifier, params, support.inputs), support.targets, ways
    )
    weight, bias = 2 * scale * centres, -scale * centres.square().sum(1)
    own = params[f"{name}.weight"]
    return {f"{name}.weight": weight.to(own), f"{name}.bias": bias.to(own)}


def features(
    model: nn.Module, classifier: nn.Linear, params: Mapping[str, Tensor], inputs: Tensor
) -> Tensor:
    """Return what a model gives its classifier [N, D], in float32 at least."""
    found: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.append(given[0])

    handle = classifier.register_forward_pre_hook(keep)
    try:
        predict(model, params, inputs)
    finally:
        handle.remove()
    return promoted(found[0])


def class_means(features: Tensor, targets: Tensor, ways: int) -> Tensor:
    """Return the mean [ways, D] of each class's features [N, D]."""
    member = F.one_hot(targets, ways).to(features.dtype)
    return member.T @ features / member.sum(0)[:, None]
