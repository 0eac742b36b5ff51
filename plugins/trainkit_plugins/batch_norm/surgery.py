"""Turn the BatchNorm layers of any model into generalized ones and back, in place."""

from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import cast

from torch import nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from .functional import Blocks
from .layer import GeneralizedBatchNorm, generalized

Only = Collection[str] | Callable[[str, nn.Module], bool]


def convert_batch_norm(
    model: nn.Module,
    *,
    ghost_size: int | None = None,
    channel_groups: int | None = None,
    channels_per_group: int | None = None,
    example_weight: float | None = None,
    blocks: Blocks | None = None,
    only: Only | None = None,
) -> list[str]:
    """Give the BatchNorm layers of ``model`` ghost batches, channel groups or example weighing, in
    place.

    Each layer keeps its identity and its parameters, buffers, hooks, eps, momentum and state-dict
    keys, and a timm BatchNormAct2d its activation and drop: only its class changes, to a subclass
    of what it was. On a layer that is already converted, arguments left at ``None`` leave its
    fields as they are, so several calls compose. Nothing is changed when an error is raised.

    Args:
        model: a model with BatchNorm1d, BatchNorm2d, BatchNorm3d or timm's BatchNormAct2d layers.
        ghost_size: examples per block in training, at least 1.
        channel_groups: groups of neighbouring channels that share statistics; divides every layer's
            channels.
        channels_per_group: the same by the size of a group; not both.
        example_weight: alpha in [0, 1], an example's weight in its own inference statistics.
        blocks: ``"any"`` (the default of a new layer), ``"strided"`` or ``"consecutive"``; see
            :func:`normalize_blocks`.
        only: names of the layers to touch, or a predicate on (name, module); ``None`` takes all.

    Returns:
        The names of the layers touched, in the model's order.

    Raises:
        ValueError: a value out of range, a group count that does not divide a layer's channels, a
            model or a selection without BatchNorm, a name that is no BatchNorm, or a layer that
            cannot be converted: a SyncBatchNorm (its statistics belong to all processes, a block to
            one), a lazy layer that has seen no data, or a subclass with a forward of its own.
    """
    _refuse_values(ghost_size, channel_groups, channels_per_group, example_weight, blocks)
    chosen = _choose(model, only)
    problems = [p for name, layer in chosen.items() if (p := _against(name, layer))]
    groups: dict[str, int | None] = {}
    for name, layer in chosen.items() if not problems else ():
        wanted = channel_groups or channels_per_group
        if wanted and layer.num_features % wanted:
            what = "channel_groups" if channel_groups else "channels_per_group"
            problems.append(
                f"{name or 'the model'} has {layer.num_features} channels, not a multiple of "
                f"{what}={wanted}"
            )
        groups[name] = (
            layer.num_features // channels_per_group if channels_per_group else channel_groups
        )
        if example_weight and layer.running_mean is None:
            problems.append(
                f"{name or 'the model'} keeps no running statistics for example_weight to mix with"
            )
    if problems:
        raise ValueError("; ".join(problems))
    for name, layer in chosen.items():
        converted = _convert(layer)
        converted.ghost_size = ghost_size or converted.ghost_size
        converted.channel_groups = groups[name] or converted.channel_groups
        converted.blocks = blocks or converted.blocks
        if example_weight is not None:
            converted.example_weight = float(example_weight)
    return list(chosen)


def revert_batch_norm(model: nn.Module) -> list[str]:
    """Give every converted layer of ``model`` the class it had; parameters and buffers stay as they
    are.

    Returns:
        The names of the layers reverted, in the model's order.
    """
    layers = converted_layers(model)
    for layer in layers.values():
        for field in ("ghost_size", "channel_groups", "example_weight", "blocks"):
            del layer.__dict__[field]
        layer.__class__ = layer.plain_class  # type: ignore[assignment]
    return list(layers)


def is_converted(module: nn.Module) -> bool:
    """Return whether ``module`` is a layer made by :func:`convert_batch_norm`."""
    return isinstance(module, GeneralizedBatchNorm)


def converted_layers(model: nn.Module) -> dict[str, GeneralizedBatchNorm]:
    """Return the converted layers of ``model`` by name, in its order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, GeneralizedBatchNorm)}


def _convert(layer: _BatchNorm) -> GeneralizedBatchNorm:
    if isinstance(layer, GeneralizedBatchNorm):
        return layer
    layer.__class__ = generalized(type(layer))
    converted = cast(GeneralizedBatchNorm, layer)
    converted.ghost_size = converted.channel_groups = None
    converted.example_weight, converted.blocks = 0.0, "any"
    return converted


def _refuse_values(
    ghost_size: int | None,
    channel_groups: int | None,
    channels_per_group: int | None,
    example_weight: float | None,
    blocks: str | None,
) -> None:
    counts = {
        "ghost_size": ghost_size,
        "channel_groups": channel_groups,
        "channels_per_group": channels_per_group,
    }
    for name, count in counts.items():
        if count is not None and (
            isinstance(count, bool) or not isinstance(count, int) or count < 1
        ):
            raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}")
    if channel_groups is not None and channels_per_group is not None:
        raise ValueError(
            "give channel_groups or channels_per_group, not both: one follows from the other"
        )
    if example_weight is not None and not 0 <= example_weight <= 1:
        raise ValueError(f"example_weight must be in [0, 1], got {example_weight!r}")
    if blocks not in (None, "any", "strided", "consecutive"):
        raise ValueError(f"blocks must be 'any', 'strided' or 'consecutive', got {blocks!r}")


def _choose(model: nn.Module, only: Only | None) -> dict[str, _BatchNorm]:
    layers = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no BatchNorm layer; {_other_norms(model)}")
    if only is None:
        return layers
    if callable(only):
        chosen = {name: m for name, m in layers.items() if only(name, m)}
    else:
        for name in sorted(set(only) - set(layers)):
            near = get_close_matches(name, layers, n=1)
            hint = (
                f"; did you mean {near[0]!r}?"
                if near
                else f"; there are {', '.join(list(layers)[:3])} ..."
            )
            raise ValueError(f"{type(model).__name__} has no BatchNorm layer {name!r}{hint}")
        chosen = {name: m for name, m in layers.items() if name in set(only)}
    if not chosen:
        raise ValueError(
            f"`only` chooses none of the {len(layers)} BatchNorm layers of {type(model).__name__}"
        )
    return chosen


def _other_norms(model: nn.Module) -> str:
    kinds = sorted(
        {type(m).__name__ for m in model.modules() if "norm" in type(m).__name__.lower()}
    )
    return (
        f"it normalizes with {', '.join(kinds)}"
        if kinds
        else "it has no normalization layer at all"
    )


def _against(name: str, layer: _BatchNorm) -> str | None:
    where = f"{name or 'the model'} is a {type(layer).__module__}.{type(layer).__qualname__}"
    if isinstance(layer, GeneralizedBatchNorm):
        return None
    if isinstance(layer, SyncBatchNorm):
        return (
            f"{where}, whose statistics are those of all processes, while a block or a group "
            "belongs to one; convert the model before, or instead of, synchronising it"
        )
    if isinstance(layer, LazyModuleMixin):
        return (
            f"{where} that has not seen its number of channels; send one batch through the model "
            "first"
        )
    if type(layer).forward not in (_BatchNorm.forward, _timm_forward(type(layer))):
        return f"{where}, a BatchNorm with a forward of its own, which a conversion would drop"
    return None


def _timm_forward(cls: type) -> Callable[..., object] | None:
    # timm's fused norm and activation, known by name because this file imports torch alone.
    for base in cls.__mro__:
        if (base.__module__, base.__qualname__) == ("timm.layers.norm_act", "BatchNormAct2d"):
            return base.forward  # type: ignore[attr-defined, no-any-return]
    return None
