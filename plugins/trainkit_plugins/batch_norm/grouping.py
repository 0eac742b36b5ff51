"""How many channel groups a layer gets whose channels the wanted number does not divide."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def fitting_groups(channels: int, wanted: int) -> int:
    """Return the largest number of equal groups of `channels` channels that is not above `wanted`."""
    return next(groups for groups in range(min(wanted, channels), 0, -1) if channels % groups == 0)


def layers_by_groups(model: nn.Module, wanted: int | None) -> dict[int, list[str]]:
    """Return the batch norms of `model` by the number of groups that fits each, most groups first; none for None."""
    found: dict[int, list[str]] = {}
    if wanted is None:
        return found
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            found.setdefault(fitting_groups(module.num_features, wanted), []).append(name)
    return dict(sorted(found.items(), reverse=True))


def described(layers: dict[int, list[str]], wanted: int | None) -> list[str]:
    """Return a line for each number of groups in `layers`, saying why it is not `wanted` where it is not."""
    lines = []
    for groups, names in layers.items():
        why = "" if groups == wanted else f" ({wanted} does not divide their channels)"
        shown = ", ".join(names[:4]) + (f" … {names[-1]}" if len(names) > 4 else "")
        lines.append(f"{groups} groups of channels in {len(names)} layers{why}: {shown}")
    return lines
