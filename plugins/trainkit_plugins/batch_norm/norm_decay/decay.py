"""Weight decay of the scale and shift of norms, each with its own strength, the scale's toward one
or zero.

In the letters of Summers and Dinneen (arXiv 1906.03548): gamma is a norm's scale, beta its shift.
Their code means

    loss + wd * (sum_k (gamma_k - 1)^2 / 2 + sum_k beta_k^2 / 2),

so that gamma decays toward one, where a norm starts, and beta toward zero. Here the optimizer
decays both as it decays any other weight: SGD in the gradient, which is the formula above, AdamW
and its kind decoupled from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .exposure import exposed_norms, is_batch_norm, is_norm

Groups = list[dict[str, Any]]

# Settings of optimizers whose steps grow with the size of the weights: LARS and LAMB, Adafactor.
_BY_SIZE = ("trust_clip", "scale_parameter")


def batch_norms(model: nn.Module, input_size: Sequence[int] | None) -> dict[str, nn.Module]:
    """Return the batch norms of `model` to decay: all, or those that no later norm of any kind
    undoes.

    Args:
        model: any module.
        input_size: shape of one example, to find out which these are; None for all.

    Raises:
        ValueError: there is none, or it cannot be found out.
    """
    norms = {name: module for name, module in model.named_modules() if is_batch_norm(module)}
    if not norms:
        raise ValueError(
            f"{type(model).__name__} has no batch norm whose scale and shift could decay; drop the "
            "plugin"
        )
    if input_size is None:
        return norms
    exposed = exposed_norms(model, input_size, blocking=is_norm)
    if not exposed:
        raise ValueError(
            "every path from each of the batch norms passes another norm, which undoes it; set "
            "where to all"
        )
    return {name: norms[name] for name in exposed}


def scales_and_shifts(norms: Iterable[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gammas and the betas of norms that have them and train them."""
    norms = list(norms)
    both = ([getattr(norm, name, None) for norm in norms] for name in ("weight", "bias"))
    scales, shifts = ([t for t in tensors if t is not None and t.requires_grad] for tensors in both)
    return scales, shifts


def decay_groups(
    groups: Sequence[Mapping[str, Any]],
    scales: Iterable[Tensor],
    shifts: Iterable[Tensor],
    *,
    scale: tuple[float, str],
    shift: tuple[float, str],
) -> Groups:
    """Move scales and shifts of norms into groups of their own, with weight decays of their own.

    Everything else that a group says (learning rate, layer decay) holds for what is moved out of
    it; a weight decay that it had for them is replaced, so nothing decays twice. The given groups
    are not changed.

    Args:
        groups: parameter groups as torch's optimizers take them.
        scales: gammas; those that are in no group (frozen ones) are left out.
        shifts: betas.
        scale: weight decay of the gammas, and the rule by which they have it, in words.
        shift: the same of the betas.

    Returns:
        The given groups without these parameters, without those left empty, and behind them the new
        groups, named `norm_scale` and `norm_shift`, with the old group's name behind that where
        there are several.
    """
    kinds = {
        "norm_scale": (set(map(id, scales)), *scale),
        "norm_shift": (set(map(id, shifts)), *shift),
    }
    moved = set().union(*(members for members, _, _ in kinds.values()))
    kept: Groups = []
    for group in groups:
        kept.append({**group, "params": [p for p in group["params"] if id(p) not in moved]})
    new: Groups = []
    for kind, (members, decay, rule) in kinds.items():
        own: Groups = []
        for group in groups:
            params = [p for p in group["params"] if id(p) in members]
            if params:
                own.append({**group, "params": params})
        for group in own:
            name = kind
            if len(own) > 1 and "name" in group:
                name = f"{kind}_{group['name']}"
            group |= {"name": name, "weight_decay": decay, "rule": rule}
        new += own
    return [group for group in kept if group["params"]] + new


def decay_toward_one(optimizer: Optimizer, scales: Sequence[Tensor]) -> Callable[[], None]:
    """Let the weight decay that `optimizer` has for `scales` pull them toward one instead of zero.

    During each step the optimizer is shown gamma - 1; afterwards one is added again. Whatever its
    rule, its weight decay then acts on gamma - 1, and all else is as before, up to rounding (of
    6e-8 at most per step in float32). Between steps, where gradients are computed and weights
    saved, the tensors hold gamma.

    Args:
        optimizer: already made, over groups that hold `scales`.
        scales: gammas in float32 or float64.

    Returns:
        A function that ends it.

    Raises:
        ValueError: the optimizer's steps grow with the size of the weights, it calls no step hooks,
            or the gammas are of a shorter type.
    """
    reason = why_not_toward_one(optimizer)
    if reason:
        raise ValueError(reason)
    short = {t.dtype for t in scales} - {torch.float32, torch.float64}
    if short:
        raise ValueError(
            f"gamma - 1 would be rounded coarsely in {short.pop()}; keep the scales of norms in "
            "float32"
        )
    own = list(scales)

    @torch.no_grad()
    def move(by: float) -> None:
        if own:
            torch._foreach_add_(own, by)

    hooks = (
        optimizer.register_step_pre_hook(lambda *_: move(-1.0)),
        optimizer.register_step_post_hook(lambda *_: move(1.0)),
    )

    def end() -> None:
        for hook in hooks:
            hook.remove()

    return end


def why_not_toward_one(optimizer: Optimizer) -> str:
    """Return why decay toward one does not go with `optimizer`; nothing where it does."""
    kind = type(optimizer).__name__
    found = [name for name in _BY_SIZE if name in optimizer.defaults]
    if found:
        return (
            f"{kind} takes steps that grow with the weights ({found[0]}), and would see those of "
            "gamma - 1"
        )
    if not getattr(type(optimizer).step, "hooked", False):
        return f"{kind}.step calls no step hooks; give the optimizer that it wraps"
    return ""
