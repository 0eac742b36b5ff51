"""Which parameters decay, and by how much each layer's learning rate is scaled: the optimizer's
groups.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import timm.optim
from torch import nn

from trainkit.config.optimizer import OptimizerSpec
from trainkit.hooks.run import ParamGroups
from trainkit.models.anatomy import decaying_parameters, exempt_names

_KINDS = {
    "decay": "matrices and kernels",
    "no_decay": "vectors, biases, the model's own exceptions",
}


def decay_groups(
    model: nn.Module, weight_decay: float, fallback: Collection[str] = ()
) -> ParamGroups:
    """Split trainable parameters into those that decay and those that do not.

    As in timm, vectors, scalars, biases and what the model exempts do not. Parameters named in
    `fallback` have groups of their own, marked with `use_fallback`.
    """
    decaying = decaying_parameters(model)
    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "decay" if name in decaying else "no_decay"
            members.setdefault((kind, name in fallback), []).append(parameter)
    groups: ParamGroups = []
    for left in (False, True):
        for kind, rule in _KINDS.items():
            params = members.get((kind, left), [])
            decay = weight_decay if kind == "decay" else 0.0
            group = {"params": params, "weight_decay": decay, "name": kind, "rule": rule}
            if left:
                group |= {"name": f"{kind}_fallback", "use_fallback": True}
            if params:
                groups.append(group)
    return groups


def name_fallback(groups: ParamGroups, words: str) -> None:
    """Say in the groups' rules which parameters the optimizer's second rule moves.

    Args:
        groups: of an optimizer that has one.
        words: which they are; nothing where the shape alone decides.
    """
    for group in groups:
        if group.get("use_fallback"):
            group["rule"] += f"; by the optimizer's fallback: {words}"
        else:
            group["rule"] += "; made orthogonal where the shape allows it"


def layer_groups(
    model: nn.Module, spec: OptimizerSpec, fallback: Collection[str] = ()
) -> ParamGroups:
    """Split trainable parameters by layer too: timm's groups, each with an `lr_scale` for the
    schedule to multiply.

    Parameters of layers whose scale is below `spec.layer_decay_no_opt_scale` no longer require a
    gradient, as in timm.
    """
    groups: ParamGroups = []
    for group in timm.optim.param_groups_layer_decay(
        model,
        weight_decay=spec.weight_decay,
        no_weight_decay_list=exempt_names(model),
        fallback_list=fallback,
        layer_decay=spec.layer_decay,
        min_scale=spec.layer_decay_min_scale,
        no_opt_scale=spec.layer_decay_no_opt_scale,
    ):
        kind = "no_decay"
        if group["weight_decay"]:
            kind = "decay"
        scale = group["lr_scale"]
        rule = f"layer decay: lr times {scale:.4g}, weight decay {group['weight_decay']:g}"
        keep = {
            "params": list(group["params"]),
            "weight_decay": group["weight_decay"],
            "lr_scale": scale,
        }
        if group.get("use_fallback"):
            kind = f"{kind}_fallback"
            keep["use_fallback"] = True
        groups.append(keep | {"name": f"{kind}_{len(groups)}", "rule": rule})
    return groups


def idle_layer_decay(
    spec: OptimizerSpec, groups: ParamGroups, before: int, after: int
) -> Iterator[str]:
    """Yield a note for each setting of layer decay that does nothing to this model.

    Args:
        spec: the `optimizer:` section.
        groups: what `layer_groups` made.
        before: how many parameters were trained before it, and `after` how many are.
    """
    least = min(group["lr_scale"] for group in groups)
    alike = before == after and len({group["lr_scale"] for group in groups}) == 1
    if alike and spec.layer_decay != 1:
        yield "optimizer.layer_decay: does nothing, because timm sees one layer in this model"
    floor, stop = spec.layer_decay_min_scale, spec.layer_decay_no_opt_scale
    why = f"does nothing, because the least factor is {least:.4g}"
    if floor and floor < least:
        yield f"optimizer.layer_decay_min_scale: {why}"
    if stop is not None and before == after:
        yield f"optimizer.layer_decay_no_opt_scale: {why}"
