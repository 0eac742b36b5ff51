"""What the balancing latents do to a task: class weights ω, step multipliers γ, modulated initial
parameters z.

At the prior mean, where every latent is 0, class weights are uniform, multipliers are 1 and
parameters stay as they are, bit for bit. Names of parameters come as data, so this fits any model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .layout import Layout
from .posterior import Latents


def class_weights(latent: Tensor) -> Tensor:
    """Return ω = softmax(ω̃) [ways]: positive, sums to one."""
    return torch.softmax(latent, 0)


def multipliers(latent: Tensor) -> Tensor:
    """Return γ = exp(γ̃) [groups]."""
    return latent.exp()


def shots_of(targets: Tensor, ways: int) -> Tensor:
    """Return the number of examples of each class [ways] among `targets` [N], without waiting
    for the device.
    """
    return torch.eye(ways, device=targets.device)[targets].sum(0)


def inverse_frequency(targets: Tensor, ways: int) -> Tensor:
    """Return class weights proportional to 1/n_c [ways], summing to one: the trivial answer to
    imbalance.

    Args:
        targets: classes of the support [N], from 0 to ways − 1.
        ways: number of classes. A class without examples gets no weight.
    """
    shots = shots_of(targets, ways)
    inverse = torch.where(shots > 0, 1 / shots.clamp(min=1), 0)
    return inverse / inverse.sum()


def scale_steps(
    step_sizes: Mapping[str, Tensor], latent: Tensor, groups: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return the step sizes, each times γ = exp(γ̃) of its parameter's group.

    Args:
        step_sizes: by parameter name, broadcastable to the parameter.
        latent: γ̃ [groups].
        groups: index of the group of each parameter; the step sizes of names that are not in it
            stay as they are.
    """
    gamma = multipliers(latent)
    changed = dict(step_sizes)
    for name, step in step_sizes.items():
        if name in groups:
            changed[name] = step * gamma[groups[name]].to(step.dtype)
    return changed


def modulate(
    params: Mapping[str, Tensor],
    latent: Tensor,
    scaled: Sequence[str],
    shifted: Sequence[str],
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Return the initial parameters with each output channel modulated: w · (1 + z) and b + z,
    where z = scale · z̃.

    The result depends on `params` and on the latent, so gradients reach both.

    Args:
        params: by name; the first dimension of what is modulated is the output channel.
        latent: z̃, one number per output channel of `scaled`, then of `shifted`, each in order.
        scaled: names of what is multiplied.
        shifted: names of what is added to.
        scale: how far a latent of 1 moves a channel; the paper has 1.
    """
    names = (*scaled, *shifted)
    sizes = [len(params[name]) for name in names]
    parts = dict(zip(names, torch.split(scale * latent, sizes), strict=True))
    changed = dict(params)
    for name in names:
        value = params[name]
        z = parts[name].to(value.dtype).view(-1, *[1] * (value.ndim - 1))
        if name in shifted:
            changed[name] = value + z
        else:
            changed[name] = value * (1 + z)
    return changed


def balance(
    params: Mapping[str, Tensor],
    step_sizes: Mapping[str, Tensor],
    latents: Latents,
    layout: Layout,
    z_scale: float = 1.0,
) -> dict[str, Any]:
    """Return what the latents of a task replace in its plan: `class_weights`, `step_sizes` and
    `params`, as far as on.

    Args:
        params: the initial parameters by name.
        step_sizes: by name.
        latents: of the task.
        layout: what their dimensions stand for.
        z_scale: as in `modulate`.
    """
    changed: dict[str, Any] = {}
    if latents.omega is not None:
        changed["class_weights"] = class_weights(latents.omega)
    if latents.gamma is not None:
        changed["step_sizes"] = scale_steps(step_sizes, latents.gamma, layout.groups)
    if latents.z is not None:
        changed["params"] = modulate(params, latents.z, layout.scaled, layout.shifted, z_scale)
    return changed
