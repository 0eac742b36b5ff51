"""Slow twins of the room norm_bias, number by number, in the letters of Goldblum et al. 2020."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Numbers = list[float]


def r_mu(phi: Numbers, mu_squared: float) -> float:
    """Equation (2) by the letter: | sum_i phi_i^2 - mu^2 |."""
    total = 0.0
    for phi_i in phi:
        total += phi_i * phi_i
    return abs(total - mu_squared)


def one_norm(phi: Numbers, grad: Numbers, mu_squared: float, lam: float) -> Numbers:
    """The push of the authors' code that they use ("1norm"): grad += lam * sign(N - mu^2) * p."""
    n = sum(p * p for p in phi)
    sign = 0.0 if n == mu_squared else 1.0 if n > mu_squared else -1.0
    return [g + lam * sign * p for g, p in zip(grad, phi, strict=True)]


def two_norm(phi: Numbers, grad: Numbers, mu_squared: float, lam: float) -> Numbers:
    """The push that their code defines and never calls ("2norm"): grad += lam * (2 N - 2 mu^2) *
    p.
    """
    n = sum(p * p for p in phi)
    return [g + lam * (2 * n - 2 * mu_squared) * p for g, p in zip(grad, phi, strict=True)]


def momentum_sgd(phi: Numbers, gradients: Sequence[Numbers], lr: float, momentum: float) -> Numbers:
    """SGD as torch has it: the buffer starts as the first gradient."""
    buffer: Numbers = []
    for grad in gradients:
        buffer = (
            [momentum * b + g for b, g in zip(buffer, grad, strict=True)] if buffer else list(grad)
        )
        phi = [p - lr * b for p, b in zip(phi, buffer, strict=True)]
    return phi


def flat(tensors: Sequence[Tensor]) -> Numbers:
    """Return every number of every tensor, in order."""
    return torch.cat([t.detach().double().flatten() for t in tensors]).tolist()


def dense_convolution(
    weight: Tensor,
    grid: tuple[int, int],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """The matrix [out m_h m_w, in n_h n_w] of a convolution with circular padding, entry by
    entry.
    """
    out, per_group, k_h, k_w = weight.shape
    (n_h, n_w), (s_h, s_w) = grid, stride
    m_h, m_w = n_h // s_h, n_w // s_w
    matrix = weight.new_zeros(out, m_h, m_w, per_group * groups, n_h, n_w)
    for o in range(out):
        first = o // (out // groups) * per_group
        for y in range(m_h):
            for x in range(m_w):
                for a in range(k_h):
                    for b in range(k_w):
                        row, column = (
                            (s_h * y + dilation[0] * a) % n_h,
                            (s_w * x + dilation[1] * b) % n_w,
                        )
                        matrix[o, y, x, first : first + per_group, row, column] += weight[
                            o, :, a, b
                        ]
    return matrix.reshape(out * m_h * m_w, -1)
