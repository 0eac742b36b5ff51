"""Which parameters of a model the latents act on: groups with a common step multiplier, channels
to modulate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class Layout:
    """What each dimension of γ̃ and z̃ stands for.

    Attributes:
        labels: a name for each group of γ̃ [groups].
        groups: index of the group of each parameter that is in one.
        scaled: names of what z multiplies.
        shifted: names of what z is added to.
        channels: dimensions of z̃: the output channels of `scaled` and then of `shifted`.
    """

    labels: tuple[str, ...] = ()
    groups: Mapping[str, int] = field(default_factory=dict)
    scaled: tuple[str, ...] = ()
    shifted: tuple[str, ...] = ()
    channels: int = 0


def lay_out(
    model: nn.Module, grouping: Mapping[str, int], modulated: Collection[str], *, norms: bool
) -> Layout:
    """Return what the latents of a model stand for.

    Args:
        model: any module.
        grouping: for each parameter of the backbone a number: those with the same number share a
            multiplier. Groups without any matrix or kernel are left out.
        modulated: parameters that z may act on. It takes, of the convolutions and linear layers
            among them, or of the norms, the weights and the biases.
        norms: modulate norms instead of convolutions and linear layers.
    """
    ranks = {name: parameter.ndim for name, parameter in model.named_parameters()}
    kept = sorted({group for name, group in grouping.items() if ranks[name] > 1})
    groups = {name: kept.index(group) for name, group in grouping.items() if group in kept}
    members: list[list[str]] = [[] for _ in kept]
    for name, group in groups.items():
        if ranks[name] > 1:
            members[group].append(name)
    layers = [
        (prefix, module) for prefix, module in model.named_modules() if _is_site(module, norms)
    ]
    scaled, shifted = (
        tuple(
            name
            for prefix, _ in layers
            if (name := f"{prefix}.{part}") in ranks and name in modulated
        )
        for part in ("weight", "bias")
    )
    sizes = {name: len(parameter) for name, parameter in model.named_parameters() if ranks[name]}
    channels = sum(sizes[name] for name in (*scaled, *shifted))
    return Layout(_distinct(map(_label, members)), groups, scaled, shifted, channels)


def _is_site(module: nn.Module, norms: bool) -> bool:
    # A transposed convolution has its output channels in the second dimension, a grouped one in the
    # first as usual.
    layer = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if norms:
        return not layer and "Norm" in type(module).__name__
    return layer


def _label(names: list[str]) -> str:
    """Return what the names of a group's weights begin with, up to a dot."""
    paths = [name.split(".")[:-1] or [name] for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or f"{names[0]}, …"


def _distinct(labels: Iterable[str]) -> tuple[str, ...]:
    found: list[str] = []
    for label in labels:
        if label in found:
            label = f"{label} ({len(found)})"
        found.append(label)
    return tuple(found)
