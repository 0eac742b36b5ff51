"""The generalized batch normalization as pure functions (Summers & Dinneen 2020, arXiv 1906.03548).

What a layer computes in training, for x [N, C, S] in blocks of n consecutive examples:

    for block in x.split(n):  # [n, C, S]
        grouped = block.view(n, G, C // G, S)
        mu = grouped.mean((0, 2, 3), keepdim=True)
        var = (grouped - mu).square().mean((0, 2, 3), keepdim=True)
        y = ((grouped - mu) / (var + eps).sqrt()).view(n, C, S)
        yield gamma[:, None] * y + beta[:, None]

Legend, in the letters of the authors' code: N examples, C channels, S positions in space (1 for a
vector); n examples per block (the ghost size), G channel groups of c = C / G channels; mu and var
are the moments that normalize, gamma and beta the layer's weight and bias, alpha the weight of an
example in its own inference statistics. Special cases: G = C, n = N is batch norm; G = C, n < N
ghost batch norm; n = 1 group norm (G = 1 layer norm, G = C instance norm); n > 1, G < C the paper's
batch/group norm.

Variances are formed around their mean and never as a difference of raw moments, so none comes out
negative. bfloat16 and float16 are summed in float32.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from ..common.precision import promoted_dtype
from .blocks import Settings, are_channels, block_sizes, flat, normalize, pool
from .cpu import BlockNorm

Blocks = Literal["any", "strided", "consecutive"]


class Normalized(NamedTuple):
    """What a training pass makes.

    Attributes:
        output: normalized, scaled and shifted input, in its shape and dtype.
        mean: mean of each channel over the whole batch, [C], float32 or wider, without gradient.
        var: biased variance of each channel over the whole batch, [C], float32 or wider, without
            gradient.
    """

    output: Tensor
    mean: Tensor
    var: Tensor


def normalize_blocks(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    ghost_size: int | None,
    channel_groups: int | None,
    eps: float,
    blocks: Blocks = "any",
) -> Normalized:
    """Normalize a training batch by the moments of its blocks of examples and groups of channels.

    ``y = gamma (x - mu) / sqrt(var + eps) + beta`` with mu and the biased var over n examples, c
    channels and space (paper section 3.4 and the authors' ``normalization.py``).

    Args:
        x: [N, C, ...] in any floating dtype.
        weight: gamma, [C], or None for 1.
        bias: beta, [C], or None for 0.
        ghost_size: n; ``None`` takes the whole batch.
        channel_groups: G, which divides C; ``None`` is C. A group is c neighbouring channels.
        eps: added to the variance.
        blocks: which examples share a block. With B equal blocks, block b of ``"strided"`` holds
            the examples b, b + B, b + 2 B ...; block b of ``"consecutive"`` (the authors' code)
            holds n neighbours. ``"any"`` takes whichever is cheaper: strided ones of a contiguous
            (NCHW) x, else consecutive ones. A last block of another size (see :func:`block_sizes`)
            always holds the batch's last examples.

    Raises:
        ValueError: a statistic would be that of a single number.
    """
    sizes = tuple(block_sizes(x.shape[0], ghost_size))
    consecutive = not x.is_contiguous() if blocks == "any" else blocks == "consecutive"
    settings = Settings(sizes, channel_groups or x.shape[1], eps, consecutive)
    if min(sizes) * (x.numel() // x.shape[0]) == settings.groups:
        raise ValueError(
            f"expected more than 1 value per statistic in training; {settings.groups} channel "
            f"groups of blocks of {min(sizes)} have 1 in an input of shape {tuple(x.shape)}"
        )
    wide = promoted_dtype(x.dtype)
    gamma, beta = (None if t is None else t.to(wide) for t in (weight, bias))
    if followed():
        y, mean, var = normalize(x.to(wide), gamma, beta, settings)
    elif x.device.type == "cpu":
        y, mean, var = BlockNorm.apply(_dense(x.to(wide)), gamma, beta, settings)
    elif are_channels(x, settings):
        y, mean, var = _normalize_channels(x.to(wide), gamma, beta, settings)
    else:
        y, mean, var = normalize(x.to(wide), gamma, beta, settings)
    return Normalized(y.to(x.dtype), *pool(mean, var, sizes))


@torch.no_grad()
def update_moments(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float
) -> None:
    """Move the running moments of each channel towards a batch's, in place, by the authors' rule.

    They average the raw moments, ``m1 <- (1 - momentum) m1 + momentum E[x]`` and ``m2 <- (1 -
    momentum) m2 + momentum E[x^2]``, and infer with the variance ``m2 - m1^2``. torch's two buffers
    hold the same: m1 and m2 - m1^2, of which the latter is here averaged without forming m2. It
    exceeds torch's own rule by ``momentum (1 - momentum) (E[x] - m1)^2``, and torch's has the batch
    variance times N / (N - 1).

    Args:
        running_mean: m1, [C].
        running_var: m2 - m1^2, [C].
        mean: E[x] over the batch, [C].
        var: biased variance over the batch, [C].
        momentum: weight of the batch (torch's convention; 1 - decay in the authors').
    """
    shift = mean - running_mean.to(mean.dtype)
    wide = running_var if running_var.dtype == var.dtype else running_var.to(var.dtype)
    wide.lerp_(var, momentum).addcmul_(shift, shift, value=momentum * (1 - momentum))
    if wide is not running_var:
        running_var.copy_(wide)
    running_mean.add_(shift, alpha=momentum)


def mix_moments(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    example_weight: float,
    channel_groups: int | None,
) -> tuple[Tensor, Tensor]:
    """Return the inference moments of each example and channel group ("inference example weighing",
    section 3.1).

    ``mu_i = (1 - alpha) m1 + alpha e_i`` and ``var_i = (1 - alpha) m2 + alpha q_i - mu_i^2``, all
    first averaged over the channels of a group; e_i and q_i are the raw moments of example i over
    space. The raw moments are mixed, not the variances.

    Args:
        x: [N, C, ...].
        running_mean: m1, [C].
        running_var: m2 - m1^2, [C].
        example_weight: alpha in [0, 1]: 0 uses the running moments alone, 1 the example's alone.
        channel_groups: G; ``None`` is C.

    Returns:
        (mu, var), each [N, G], float32 or wider.
    """
    groups, wide = channel_groups or x.shape[1], promoted_dtype(x.dtype)
    m1, var = _group_moments(running_mean.to(wide), running_var.to(wide), groups)
    if example_weight == 0:
        return m1.expand(x.shape[0], -1), var.expand(x.shape[0], -1)
    own = x.to(wide).reshape(x.shape[0], groups, math.prod(x.shape[1:]) // groups)
    own_mu = own.mean(2)
    own_var = (own - own_mu[:, :, None]).square().mean(2)
    between = example_weight * (1 - example_weight) * (own_mu - m1).square()
    return (
        torch.lerp(m1, own_mu, example_weight),
        torch.lerp(var, own_var, example_weight) + between,
    )


def normalize_examples(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    example_weight: float,
    channel_groups: int | None,
    eps: float,
) -> Tensor:
    """Normalize each example by its :func:`mix_moments`; the arguments are those of the functions
    above.

    Returns:
        [N, C, ...] in the dtype of ``x``.
    """
    groups, wide = channel_groups or x.shape[1], promoted_dtype(x.dtype)
    members = x.shape[1] // groups
    gamma, beta = (None if t is None else t.to(wide) for t in (weight, bias))
    if example_weight == 0:
        moments = _group_moments(running_mean.to(wide), running_var.to(wide), groups)
        mu, var = (m.repeat_interleave(members) for m in moments)
        return F.batch_norm(x.to(wide), mu, var, gamma, beta, False, 0.0, eps).to(x.dtype)
    mu, var = mix_moments(
        x, running_mean, running_var, example_weight=example_weight, channel_groups=channel_groups
    )
    mu, a = (m.repeat_interleave(members, dim=1) for m in (mu, torch.rsqrt(var + eps)))
    a = a if gamma is None else a * gamma
    c = -mu * a if beta is None else beta - mu * a
    shape = (*a.shape, *[1] * (x.dim() - 2))
    return (x.to(wide) * a.view(shape) + c.view(shape)).to(x.dtype)


def _group_moments(running_mean: Tensor, running_var: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    m1 = running_mean.view(groups, -1)
    mu = m1.mean(1)
    return mu, (running_var.view(groups, -1) + (m1 - mu[:, None]).square()).mean(1)


def followed() -> bool:
    """Whether tracers, compilers, torch.func or forward-mode derivatives watch, which need
    ordinary operations.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def _normalize_channels(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    n, blocks = settings.sizes[0], len(settings.sizes)
    gamma, beta = (None if t is None else t.repeat(blocks) for t in (weight, bias))
    seen = x.view(n, blocks * x.shape[1], *x.shape[2:])
    y, mean, inv = torch.native_batch_norm(seen, gamma, beta, None, None, True, 0.0, settings.eps)
    var = inv.detach().pow(-2).sub_(settings.eps).clamp_(min=0)
    return y.view(x.shape), mean.detach().view(blocks, -1), var.view(blocks, -1)


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous() or flat(x).transpose(1, 2).is_contiguous() else x.contiguous()
