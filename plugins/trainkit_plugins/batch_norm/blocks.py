"""Blocks of examples and groups of channels, and the training pass in ordinary operations.

Every tensor is seen as X[n, B, C, S]: n examples in each of B equal blocks, C channels, S
positions. A batch whose last block differs takes two such views. mu, inv and var are [B, C].
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Settings(NamedTuple):
    """What a training pass needs besides tensors.

    Attributes:
        sizes: examples in each block; all equal but perhaps the last.
        groups: G, channel groups.
        eps: added to the variance.
        consecutive: whether a block holds neighbouring examples or every B-th.
    """

    sizes: tuple[int, ...]
    groups: int
    eps: float
    consecutive: bool


class Stretch(NamedTuple):
    """Equal blocks: ``blocks`` of ``size`` examples, from example ``start`` and block ``first``
    on.
    """

    start: int
    first: int
    blocks: int
    size: int

    def view(self, x: Tensor, consecutive: bool) -> Tensor:
        """See its part of [N, C, S] as [n, B, C, S], without a copy."""
        examples = x.narrow(0, self.start, self.blocks * self.size)
        if consecutive:
            return examples.view(self.blocks, self.size, *x.shape[1:]).transpose(0, 1)
        return examples.view(self.size, self.blocks, *x.shape[1:])


def block_sizes(batch: int, ghost_size: int | None) -> list[int]:
    """Split a batch into blocks of ``ghost_size`` examples that use every example.

    A remainder of more than half a ghost size is a block of its own; a smaller one joins the last
    block. So a block of one example is made by ``ghost_size=1`` alone. ``None`` makes one block.

    Returns:
        The sizes of the blocks, in order; they sum to ``batch``.
    """
    if ghost_size is None or batch <= ghost_size:
        return [batch]
    rest = batch % ghost_size
    sizes = [ghost_size] * (batch // ghost_size)
    if 2 * rest > ghost_size:
        sizes.append(rest)
    else:
        sizes[-1] += rest
    return sizes


def stretches(sizes: tuple[int, ...]) -> list[Stretch]:
    """Return the runs of equal blocks: one, or two where the last block differs."""
    even = len(sizes) if sizes[-1] == sizes[0] else len(sizes) - 1
    found = [Stretch(0, 0, even, sizes[0])]
    if even < len(sizes):
        found.append(Stretch(even * sizes[0], even, 1, sizes[-1]))
    return found


def are_channels(x: Tensor, settings: Settings) -> bool:
    """Whether the blocks of x, [N, C, ...], are a view of it with more channels: equal, strided,
    of contiguous x.
    """
    sizes, groups, _, consecutive = settings
    return not consecutive and groups == x.shape[1] and sizes[0] == sizes[-1] and x.is_contiguous()


def flat(x: Tensor) -> Tensor:
    """See [N, C, ...] as [N, C, S]."""
    return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)


def is_whole(X: Tensor) -> bool:
    """Whether the examples of a block of [n, B, C, S] lie one after the other."""
    return X.stride(0) == X.shape[2] * X.shape[3]


def sum_over(X: Tensor) -> Tensor:
    """Sum [n, B, C, S] over examples and space, [B, C, 1].

    torch is eight times slower unless dimensions come in memory's order.
    """
    if X.stride(3) == 1:
        return X.sum(0).sum(2, keepdim=True)
    rows = X.transpose(2, 3)
    if is_whole(X):
        return rows.sum((0, 2)).unsqueeze(2)
    # Threads share the work by rows of the result, of which the first sum over space leaves more.
    first = 0 if torch.get_num_threads() == 1 else 2
    return rows.sum(first).sum(1 if first == 0 else 0).unsqueeze(2)


def over_groups(x: Tensor, groups: int) -> Tensor:
    """Average x, [B, C, ...], over the channels of each group and give every channel its group's
    average.
    """
    if groups == x.shape[1]:
        return x
    grouped = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    return grouped.mean(2, keepdim=True).expand_as(grouped).reshape(x.shape)


def pool(mean: Tensor, var: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the moments of each channel over the whole batch, [C], from those of its blocks,
    [B, C].
    """
    if sizes[0] == sizes[-1]:
        whole = mean.mean(0)
        return whole, torch.square(mean - whole).add_(var).mean(0)
    share = mean.new_tensor(sizes) / sum(sizes)
    whole = share @ mean
    return whole, share @ (torch.square(mean - whole) + var)


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize [N, C, ...] by its blocks and groups, in operations that torch can trace and
    differentiate twice.

    Returns:
        (y, mean, var): y as x; the moments of each block and channel, [B, C], the variance biased.
    """
    outputs, means, variances = [], [], []
    for run in stretches(settings.sizes):
        X = run.view(flat(x), settings.consecutive)
        mean = X.mean((0, 3))
        mu = over_groups(mean, settings.groups)
        centred = X - mu[:, :, None]
        second = centred.square().mean((0, 3))
        inv = torch.rsqrt(over_groups(second, settings.groups) + settings.eps)
        a = inv if weight is None else inv * weight
        y = centred * a[:, :, None]
        if bias is not None:
            y = y + bias[:, None]
        outputs.append((y.transpose(0, 1) if settings.consecutive else y).flatten(0, 1))
        means.append(mean)
        # The second moment was taken around the group's mean.
        variances.append(
            second
            if settings.groups == x.shape[1]
            else (second - (mean - mu).square()).clamp(min=0)
        )
    whole = [torch.cat(t) if len(t) > 1 else t[0] for t in (outputs, means, variances)]
    return whole[0].reshape(x.shape), whole[1].detach(), whole[2].detach()
