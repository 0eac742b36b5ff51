"""How examples and channels are grouped, where numbers do not divide evenly, and how that is
told.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .blocks import block_sizes
from .functional import Blocks


def fitting_groups(channels: int, wanted: int) -> int:
    """Return the largest number of equal groups of `channels` channels that is not above
    `wanted`.
    """
    return next(groups for groups in range(min(wanted, channels), 0, -1) if channels % groups == 0)


def layers_by_groups(model: nn.Module, wanted: int | None) -> dict[int, list[str]]:
    """Return the batch norms of `model` by the number of groups that fits each, most groups
    first; none for None.
    """
    found: dict[int, list[str]] = {}
    if wanted is None:
        return found
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            found.setdefault(fitting_groups(module.num_features, wanted), []).append(name)
    return dict(sorted(found.items(), reverse=True))


def described_blocks(batch: int, size: int | None, blocks: Blocks) -> str:
    """Return how micro-batches of `batch` examples are divided into blocks of `size`, in words."""
    sizes = block_sizes(batch, size)
    whole = f"each micro-batch of {batch} examples, on each rank,"
    if len(sizes) == 1:
        return f"{whole} is one block, as in plain batch norm"
    last = "" if sizes[-1] == sizes[0] else f", the last of {sizes[-1]}"
    return f"{whole} becomes {len(sizes)} blocks of {sizes[0]}{last}" + (
        "" if blocks == "any" else f" ({blocks})"
    )


def described_groups(layers: dict[int, list[str]], wanted: int | None) -> list[str]:
    """Return a line for each number of groups in `layers`, saying why it is not `wanted` where
    it is not.
    """
    lines = []
    for groups, names in layers.items():
        why = "" if groups == wanted else f" ({wanted} does not divide their channels)"
        shown = ", ".join(names[:4]) + (f" … {names[-1]}" if len(names) > 4 else "")
        lines.append(f"{groups} groups of channels in {len(names)} layers{why}: {shown}")
    return lines
