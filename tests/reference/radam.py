"""RAdam and its controls, slowly: one vector, one step after the other, in the paper's letters.

theta = parameters, g = gradient, m and v = moments, alpha = learning rate, lam = decoupled weight
decay, rho = length of the approximated moving average, r = rectification, l = adaptive learning
rate.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def radam(
    theta: Vector,
    gradients: Sequence[Vector],
    alpha: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    lam: float = 0.0,
    unrectified: str = "sgd",
) -> Iterator[Vector]:
    """Yield theta after each step of Algorithm 2, with the authors' threshold rho_t >= 5."""
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    rho_inf = 2 / (1 - beta2) - 1
    for t, g in enumerate(gradients, start=1):
        v = beta2 * v + (1 - beta2) * g * g
        m = beta1 * m + (1 - beta1) * g
        m_hat = m / (1 - beta1**t)
        rho_t = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        if rho_t >= 5:
            l_t = np.sqrt(1 - beta2**t) / (np.sqrt(v) + eps)
            r_t = np.sqrt(
                (rho_t - 4) * (rho_t - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_t)
            )
            theta = theta - alpha * lam * theta - alpha * r_t * m_hat * l_t
        elif unrectified == "sgd":
            theta = theta - alpha * lam * theta - alpha * m_hat
        yield theta


def adam(
    theta: Vector,
    gradients: Sequence[Vector],
    alpha: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    lam: float = 0.0,
    warmup: int = 0,
    freeze: int = 0,
) -> Iterator[Vector]:
    """Yield theta after each step of Adam with the paper's eps, a linear warm-up, and frozen
    first steps.
    """
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        v = beta2 * v + (1 - beta2) * g * g
        if t > freeze:
            alpha_t = 1e-8 + t * alpha / warmup if t < warmup else alpha
            m = beta1 * m + (1 - beta1) * g
            psi = np.sqrt(1 - beta2**t) / (np.sqrt(v) + eps)
            theta = theta - alpha_t * lam * theta - alpha_t * m / (1 - beta1**t) * psi
        yield theta
