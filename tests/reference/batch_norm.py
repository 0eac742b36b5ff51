"""Slow twin of the generalised batch norm, in the letters of the authors' code (Summers & Dinneen,
1906.03548).

x[i][k] is the list of the positions of example i and channel k. n: examples per block; G: channel
groups of c = C / G channels; e, q: mean of x and of x^2 over space; mu, q2: the same over a block
and group; d: decay.
"""

import math

Batch = list[list[list[float]]]


def blocks_of(N: int, n: int | None, *, strided: bool) -> list[list[int]]:
    """Return the examples of each block: full ones, then a remainder that joins the last if 2 r
    <= n.
    """
    if n is None or n >= N:
        return [list(range(N))]
    B, rest = N // n, N % n
    if 0 < 2 * rest <= n:
        last = list(range((B - 1) * n, N))
        B -= 1
    else:
        last = list(range(B * n, N))
    full = [[b + j * B if strided else b * n + j for j in range(n)] for b in range(B)]
    return [*full, last] if last else full


def train(
    x: Batch, gamma: list[float], beta: list[float], blocks: list[list[int]], G: int, eps: float
) -> Batch:
    """Return y: every block and group by its own moments."""
    c = len(x[0]) // G
    y: Batch = [[[] for _ in example] for example in x]
    for block in blocks:
        for g in range(G):
            channels = range(g * c, (g + 1) * c)
            values = [v for i in block for k in channels for v in x[i][k]]
            mu = math.fsum(values) / len(values)
            var = math.fsum((v - mu) ** 2 for v in values) / len(values)
            for i in block:
                for k in channels:
                    y[i][k] = [
                        gamma[k] * (v - mu) / math.sqrt(var + eps) + beta[k] for v in x[i][k]
                    ]
    return y


def running(
    x: Batch, m1: list[float], m2: list[float], d: float
) -> tuple[list[float], list[float]]:
    """Return m1 and m2 after a batch: always of each channel over the whole batch."""
    new1, new2 = [], []
    for k in range(len(m1)):
        values = [v for example in x for v in example[k]]
        new1.append(d * m1[k] + (1 - d) * math.fsum(values) / len(values))
        new2.append(d * m2[k] + (1 - d) * math.fsum(v * v for v in values) / len(values))
    return new1, new2


def infer(
    x: Batch,
    gamma: list[float],
    beta: list[float],
    m1: list[float],
    m2: list[float],
    alpha: float,
    G: int,
    eps: float,
) -> Batch:
    """Return y by moments of which the example itself is a share alpha; the raw moments are
    mixed.
    """
    C = len(m1)
    c = C // G
    y: Batch = []
    for example in x:
        e = [math.fsum(values) / len(values) for values in example]
        q = [math.fsum(v * v for v in values) / len(values) for values in example]
        out = []
        for k in range(C):
            group = range(k // c * c, k // c * c + c)
            mu = math.fsum((1 - alpha) * m1[j] + alpha * e[j] for j in group) / c
            q2 = math.fsum((1 - alpha) * m2[j] + alpha * q[j] for j in group) / c
            out.append(
                [gamma[k] * (v - mu) / math.sqrt(q2 - mu * mu + eps) + beta[k] for v in example[k]]
            )
        y.append(out)
    return y
