"""Slow twins of the clipping room in plain Python floats, in the letters of Zhang et al. 2020
(1905.11881).

eta_c, eta_n: learning rates of clipped and normalised gradient descent; gamma: clipping threshold
(and, in the smoothness estimate, the fraction of the step); beta: offset of the normalised step; h:
the resulting step factor.
"""

import math
from collections.abc import Callable, Sequence

Vector = Sequence[float]


def norm(g: Vector) -> float:
    """Return the L2 norm, summed exactly."""
    return math.sqrt(math.fsum(v * v for v in g))


def clip_step(norm_g: float, eta_c: float, gamma: float) -> float:
    """h_c = min(eta_c, gamma eta_c / ||g||)."""
    return min(eta_c, gamma * eta_c / norm_g)


def normalised_step(norm_g: float, eta_n: float, beta: float) -> float:
    """h_n = eta_n / (||g|| + beta)."""
    return eta_n / (norm_g + beta)


def theorem_3(L0: float, L1: float) -> tuple[float, float]:
    """Return (eta_c, gamma) = (1 / (10 L0), min(1 / eta_c, 1 / (10 L1 eta_c)))."""
    eta_c = 1 / (10 * L0)
    return eta_c, min(1 / eta_c, 1 / (10 * L1 * eta_c))


def smoothness(
    grad: Callable[[Vector], Vector], x_k: Vector, x_next: Vector, grid: Vector
) -> float:
    """Return max over gamma of ||grad(x_k + gamma d) - grad(x_k)|| / (gamma ||d||), d = x_next -
    x_k.
    """
    d = [b - a for a, b in zip(x_k, x_next, strict=True)]
    at_start = grad(x_k)
    quotients = []
    for gamma in grid:
        there = grad([a + gamma * v for a, v in zip(x_k, d, strict=True)])
        change = [b - a for a, b in zip(at_start, there, strict=True)]
        quotients.append(norm(change) / (gamma * norm(d)))
    return max(quotients)


def absolute_log_error(L0: float, L1: float, norms: Vector, values: Vector) -> float:
    """Return the mean of |log s - log(L0 + L1 g)|: what the fit minimises."""
    pairs = zip(norms, values, strict=True)
    return math.fsum(abs(math.log(s) - math.log(L0 + L1 * g)) for g, s in pairs) / len(norms)


def pearson(x: Vector, y: Vector) -> float:
    """Return the correlation coefficient by its definition."""
    mx, my = math.fsum(x) / len(x), math.fsum(y) / len(y)
    sxy = math.fsum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return sxy / (norm([a - mx for a in x]) * norm([b - my for b in y]))


def slope(x: Vector, y: Vector) -> float:
    """Return the least-squares slope of y on x by its definition."""
    mx, my = math.fsum(x) / len(x), math.fsum(y) / len(y)
    sxy = math.fsum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return sxy / math.fsum((a - mx) ** 2 for a in x)


def ranks(x: Vector) -> list[float]:
    """Return ranks from 1, ties sharing their mean rank."""
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]
