"""A model as one task may use it: its parameters are the model's, all else is the task's own.

Batch norms write into their buffers at every forward pass, some models keep derived tensors between
passes, plugins keep a task's noise on modules. None of that may reach the meta-learned model, or
another task.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

NormStatistics = Literal["batch", "support", "running", "per_step"]

REFUSED = {
    "compile": "runs copies of the model, uncompiled; set it to false",
    "grad_checkpointing": (
        "swaps a task's parameters in, and a block that is computed again would not see them; set "
        "it to false, and checkpoint_steps to true"
    ),
}
"""What a run may ask of a model and a copy cannot do, with the reason and what to do."""

_MARK = "_isolated_for_tasks"


def isolate(model: nn.Module, norm_statistics: NormStatistics = "batch") -> nn.Module:
    """Return a structural copy of `model`: the same `Parameter` objects, modules and buffers of its
    own.

    In the copy everything random or averaged is off (dropout, stochastic depth: as in `eval()`),
    except that batch norms use the statistics of the batch they are given, unless `norm_statistics`
    is `running`. Forward hooks that are bound methods of modules of the model are bound to the
    copy's modules.

    Args:
        model: any module; it is left as it is.
        norm_statistics: what batch norms normalise with; see `trainkit_plugins.maml.inner`.
    """
    memo: dict[int, object] = {id(parameter): parameter for parameter in model.parameters()}
    for module in model.modules():
        # Some attention layers keep biases derived from their parameters between evaluations: stale
        # in a task, and tensors of a graph cannot be copied.
        cache = getattr(module, "attention_bias_cache", None)
        if isinstance(cache, dict):
            memo[id(cache)] = {}
    twin = copy.deepcopy(model, memo)
    twin.eval()
    for module in twin.modules():
        if isinstance(module, _BatchNorm):
            module.training = norm_statistics != "running"
        elif hasattr(module, "attention_bias_cache"):
            module.training = True  # in this mode it derives the biases anew at every pass
    object.__setattr__(twin, _MARK, True)
    return twin


def is_isolated(model: nn.Module) -> bool:
    """Return whether `isolate` made this module."""
    return getattr(model, _MARK, False)


def refresh(twin: nn.Module, model: nn.Module) -> None:
    """Give a copy fresh clones of the model's buffers, whatever tasks before wrote into its own."""
    for own, source in zip(twin.modules(), model.modules(), strict=True):
        for name, buffer in source._buffers.items():
            if buffer is not None:
                buffer = buffer.detach().clone()
            own._buffers[name] = buffer


_places: WeakKeyDictionary[nn.Module, dict[str, list[tuple[dict[str, Any], str]]]] = (
    WeakKeyDictionary()
)


def places(model: nn.Module) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """Return for each parameter where it is kept: one place, or several where modules share it.

    A module that is reached by two names is one place: swapping it twice would leave the swapped
    tensor in it.
    """
    if model not in _places:
        found: dict[int, list[tuple[dict[str, Any], str]]] = {}
        names = {id(p): name for name, p in model.named_parameters()}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    found.setdefault(id(parameter), []).append((module._parameters, name))
        _places[model] = {names[key]: where for key, where in found.items()}
    return _places[model]


@contextmanager
def swapped(model: nn.Module, params: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other tensors in the places of a model's parameters for a while.

    What `torch.func.functional_call` does, without its cost of a millisecond a call and with the
    buffers left alone.

    Raises:
        KeyError: the model has no parameter of a name.
    """
    where = places(model)
    targets = [(place, tensor) for name, tensor in params.items() for place in where[name]]
    own = [(kept, key, kept[key]) for (kept, key), _ in targets]
    try:
        for (kept, key), tensor in targets:
            kept[key] = tensor
        yield
    finally:
        for kept, key, tensor in own:
            kept[key] = tensor


def norm_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that normalisation layers hold.

    A layer counts if it is one of torch's or if its class says so in its name and it is neither
    linear nor a
    convolution: timm has a dozen kinds. Containers hold no parameters of their own.
    """
    torchs = (
        _BatchNorm,
        nn.LayerNorm,
        nn.GroupNorm,
        nn.RMSNorm,
        nn.modules.instancenorm._InstanceNorm,
    )
    found = set()
    for prefix, module in model.named_modules():
        named = "Norm" in type(module).__name__ or type(module).__name__ == "Affine"
        weights = isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        if isinstance(module, torchs) or (named and not weights):
            found |= {f"{prefix}.{name}".lstrip(".") for name in module._parameters}
    return frozenset(found) & {name for name, _ in model.named_parameters()}


def head_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the classifier's parameters, as timm's `get_classifier` says which that
    is.

    Raises:
        ValueError: the model does not say.
    """
    if not hasattr(model, "get_classifier"):
        raise ValueError(
            f"{type(model).__name__} does not name its classifier (it has no get_classifier)"
        )
    head = cast(Any, model).get_classifier()
    heads = head if isinstance(head, tuple | list) else [head]
    own = {id(parameter) for module in heads for parameter in module.parameters()}
    names = frozenset(name for name, parameter in model.named_parameters() if id(parameter) in own)
    if not names:
        raise ValueError(f"the classifier of {type(model).__name__} has no parameters")
    return names


META = "meta."
"""Names that begin so belong to plugins' meta-parameters: the inner loop never touches them."""


def backbone_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of all parameters but the plugins' own."""
    return tuple(name for name, _ in model.named_parameters() if not name.startswith(META))


Adapt = Literal["all", "head", "body"]


def adapted_names(model: nn.Module, which: Adapt = "all") -> tuple[str, ...]:
    """Return the names that the inner loop moves: `all`, the `head` or the `body` without it;
    norms never.
    """
    names = [name for name in backbone_names(model) if name not in norm_names(model)]
    if which == "all":
        return tuple(names)
    head = head_names(model)
    return tuple(name for name in names if (name in head) == (which == "head"))
