"""Singular values of convolutions as linear maps of feature maps, and projections of them (Goldblum
et al. 2020, 5).

A convolution with circular padding is, in Fourier space, one small matrix per frequency (Sedghi,
Gupta and Long, The Singular Values of Convolutional Layers, 2019): its singular values are those of
all these matrices together. Zero padding differs at the border only, and is treated as circular
here, as the paper does.

The letters: o and i are output and input channels of one group, n the side of the feature map, s
the stride, m = n / s the side of the output; f runs over the n x n input frequencies, g over the m
x m output frequencies. Picking every s-th output folds the frequencies g + j m onto g, so that a
strided convolution is, at each g, the o x (i s s) matrix

    M(g) = [K(g), K(g + m), ...] / s         K(f) = the o x i Fourier transform of the kernel at f

Groups are separate convolutions, and a dilated kernel is a larger one with holes. A linear layer,
and a convolution with a 1 x 1 kernel, is its own matrix.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ...common.precision import promoted, promoted_dtype

Mode = Literal["maximize", "minimize"]


class Geometry(NamedTuple):
    """How a layer's weight acts on its input.

    Attributes:
        grid: sides of the grid on which the operator is looked at; (1, 1) for a plain matrix. It is
            the feature map, made as large as the kernel and a multiple of the stride where it is
            smaller.
        stride: of the convolution.
        dilation: of the convolution.
        groups: of the convolution.
    """

    grid: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


class Spectrum(NamedTuple):
    """Singular values of an operator: half of them, because a real kernel has each frequency's twin
    too.

    Attributes:
        values: [..., k], one row per matrix.
        weights: how often each row counts, shape [...]; 1 or 2.
    """

    values: Tensor
    weights: Tensor


class Projected(NamedTuple):
    """What a projection made of a weight.

    Attributes:
        weight: the new weight; the old tensor itself where no singular value was to be changed.
        effective_rank: of the old operator, as a share of the largest possible (see
            :func:`effective_rank`).
        changed: share of the singular values that were changed.
    """

    weight: Tensor
    effective_rank: Tensor
    changed: Tensor


def geometry(
    module: nn.Module, size: tuple[int, int] | None, known: tuple[type, ...] = ()
) -> Geometry | str:
    """Return how a layer acts as an operator, or why that is not defined here.

    Args:
        module: any layer.
        size: height and width of its input; None if it is not known.
        known: further subclasses of :class:`torch.nn.Conv2d` that differ from it by padding alone.
    """
    kind = type(module).__name__
    if nn.utils.parametrize.is_parametrized(module):
        return f"{kind} computes its weight from other tensors"
    if isinstance(module, nn.Linear):
        plain = type(module).forward is nn.Linear.forward
        return Geometry() if plain else f"{kind} does more with its weight than a linear layer"
    if not isinstance(module, nn.Conv2d):
        return f"{kind} is neither a 2-D convolution nor a linear layer"
    if type(module).forward is not nn.Conv2d.forward and not isinstance(module, known):
        return f"{kind} does more with its weight than a convolution"
    if module.kernel_size == (1, 1):
        return Geometry(groups=module.groups)
    if size is None:
        return f"{kind} took no part in the forward pass, so the size of its input is not known"
    reach = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    height, width = (
        s * math.ceil(max(n, r) / s) for n, r, s in zip(size, reach, module.stride, strict=True)
    )
    return Geometry((height, width), _pair(module.stride), _pair(module.dilation), module.groups)


def spectrum(weight: Tensor, geometry: Geometry) -> Spectrum:
    """Return the singular values of a layer's operator.

    Args:
        weight: [out, in] or [out, in / groups, height, width], real.
        geometry: from :func:`geometry`.
    """
    matrices = _matrices(weight, geometry)
    k = min(matrices.shape[-2:])
    values = matrices.norm(dim=(-2, -1))[..., None] if k == 1 else torch.linalg.svdvals(matrices)
    return Spectrum(values, _weights(values, geometry))


def effective_rank(spectrum: Spectrum) -> Tensor:
    """Return the effective rank r = ||W||_nuclear / ||W||_Frobenius as a share of the largest
    possible, in (0, 1].

    r is at most the square root of the number d of singular values, reached when all are equal;
    this is r / sqrt(d), which unlike r does not grow with the feature map. NaN for an operator of
    zeros.
    """
    values, weights = spectrum.values, spectrum.weights[..., None]
    count = weights.sum() * values.shape[-1]
    return (weights * values).sum() / (weights * values.square()).sum().sqrt() / count.sqrt()


@torch.no_grad()
def project(weight: Tensor, geometry: Geometry, mode: Mode, threshold: float) -> Projected:
    """Change the singular values of a layer's operator and return the nearest kernel of the same
    size.

    RankMin sets singular values below ``threshold`` to zero, RankMax caps them at ``threshold``,
    which raises the effective rank. The changed operator is a convolution with a kernel as large as
    the feature map; all of it outside the support of the old kernel is cut off, which moves the
    singular values again. One projection does therefore not keep the bound, except where kernel and
    grid are of the same size (and for matrices).

    Args:
        weight: [out, in] or [out, in / groups, height, width], real; not changed.
        geometry: from :func:`geometry`.
        mode: maximize or minimize.
        threshold: in units of the singular values; infinite with maximize, or 0 with minimize,
            changes nothing.

    Raises:
        ValueError: ``threshold`` is negative or NaN.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}")
    if threshold == (math.inf if mode == "maximize" else 0):
        found = spectrum(weight, geometry)
        return Projected(weight, effective_rank(found), torch.zeros_like(found.weights.sum()))
    matrices = _matrices(weight, geometry)
    u, old, vh = _svd(matrices)
    new = old.clamp(max=threshold) if mode == "maximize" else torch.where(old < threshold, 0.0, old)
    before = Spectrum(old, _weights(old, geometry))
    touched = new != old
    share = (before.weights[..., None] * touched).sum() / (before.weights.sum() * old.shape[-1])
    if touched.any():
        # What is taken away, not what is left: frequencies that are in bounds keep their bits,
        # nearly.
        matrices = matrices - (u * (old - new)[..., None, :].to(u.dtype)) @ vh
        weight = _kernel(matrices, weight, geometry)
    return Projected(weight, effective_rank(before), share)


def _svd(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A thin SVD; that of a single row or column is its norm and its direction."""
    if min(matrices.shape[-2:]) > 1:
        u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
        return u, s, vh
    s = matrices.norm(dim=(-2, -1))[..., None]
    unit = matrices / s[..., None].clamp(min=torch.finfo(s.dtype).tiny).to(matrices.dtype)
    one = torch.ones_like(matrices[..., :1, :1])
    return (one, s, unit) if matrices.shape[-2] == 1 else (unit, s, one)


def _matrices(weight: Tensor, geometry: Geometry) -> Tensor:
    """Return M(g) for one of each pair of twin frequencies: [groups, m_h, m_w // 2 + 1, o, i s_h
    s_w].
    """
    if geometry.grid == (1, 1):
        return promoted(weight).reshape(geometry.groups, 1, 1, -1, weight.shape[1])
    (n_h, n_w), (s_h, s_w) = geometry.grid, geometry.stride
    kernel = weight.new_zeros(*weight.shape[:2], n_h, n_w, dtype=promoted_dtype(weight.dtype))
    kernel[_taps(weight, geometry)] = weight
    at = torch.fft.fft2(kernel).view(
        geometry.groups, -1, weight.shape[1], s_h, n_h // s_h, s_w, n_w // s_w
    )
    half: Tensor = at[..., : n_w // s_w // 2 + 1].permute(0, 4, 6, 1, 2, 3, 5).flatten(4)
    return half / math.sqrt(s_h * s_w)


def _kernel(matrices: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Undo `_matrices`, cutting off what lies outside the support of `weight`."""
    if geometry.grid == (1, 1):
        return matrices.reshape(weight.shape).to(weight.dtype)
    (n_h, n_w), (s_h, s_w), groups = geometry.grid, geometry.stride, geometry.groups
    m_h, m_w = n_h // s_h, n_w // s_w
    apart = matrices.reshape(*matrices.shape[:-1], weight.shape[1], s_h, s_w)
    half = apart.permute(0, 3, 4, 5, 1, 6, 2) * math.sqrt(s_h * s_w)
    at = half.new_zeros(groups, weight.shape[0] // groups, weight.shape[1], s_h, m_h, s_w, m_w)
    at[..., : m_w // 2 + 1] = half
    at = at.view(*weight.shape[:2], n_h, n_w)
    # The kernel is real: the frequency -f has the conjugate of what f has.
    twin = at.flip(-2, -1).roll((1, 1), (-2, -1)).conj()
    known = torch.arange(n_w, device=at.device) % m_w <= m_w // 2
    kernel: Tensor = torch.fft.ifft2(torch.where(known, at, twin)).real
    return kernel[_taps(weight, geometry)].to(weight.dtype)


def _taps(weight: Tensor, geometry: Geometry) -> tuple[slice, ...]:
    """Return where on the grid the entries of the kernel lie."""
    ends = [(d * (k - 1) + 1, d) for d, k in zip(geometry.dilation, weight.shape[2:], strict=True)]
    return (slice(None), slice(None), *(slice(0, end, step) for end, step in ends))


def _weights(values: Tensor, geometry: Geometry) -> Tensor:
    m_w = geometry.grid[1] // geometry.stride[1]
    columns = torch.arange(values.shape[2], device=values.device)
    alone = (columns == 0) | (2 * columns == m_w)
    return torch.where(alone, 1.0, 2.0).to(values.dtype).expand(values.shape[:-1])


def _pair(sides: tuple[int, ...]) -> tuple[int, int]:
    return sides[0], sides[1]
