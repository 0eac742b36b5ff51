"""Meta Dropout in the letters of its authors' code, slowly: the four-layer network, its noise and
the inner loop.

W, b, U, d are theta; V, c, v, e are phi; beta are the shifts of the norms. Layouts are torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]
THETA = ("W1", "b1", "W2", "b2", "W3", "b3", "W4", "b4", "U", "d")


def forward(
    w: Weights, x: Tensor, eps: Callable[[str, Tensor], Tensor] | None = None, *, gated: bool = True
) -> Tensor:
    """Return logits; `eps(name, like)` gives the noise of each layer (`1` to `4`, `head`), None
    draws nothing.
    """
    h = x
    for layer in "1234":
        u = F.conv2d(h, w[f"W{layer}"], w[f"b{layer}"], padding=1)
        if gated:
            a = F.conv2d(h, w[f"V{layer}"], w[f"c{layer}"], padding=1)
            if eps is not None:
                a = a + eps(layer, a)
            u = u * torch.log1p(torch.exp(a))
        mean = u.mean((0, 2, 3), keepdim=True)
        variance = ((u - mean) ** 2).mean((0, 2, 3), keepdim=True)
        u = (u - mean) / torch.sqrt(variance + 1e-3) + w[f"beta{layer}"][None, :, None, None]
        h = F.max_pool2d(torch.relu(u), 2)
    f = h.flatten(1)
    mu = f @ w["U"].T + w["d"]
    if eps is None or not gated:
        return mu
    s = torch.log1p(torch.exp(f @ w["v"].T + w["e"]))
    return mu + s * eps("head", mu)


def adapt(
    w: Weights,
    support: tuple[Tensor, Tensor],
    *,
    steps: int,
    alpha: float,
    noise: Callable[[int, int], Callable[[str, Tensor], Tensor] | None] = lambda k, s: None,
    samples: int = 1,
    second_order: bool = True,
    gated: bool = True,
) -> dict[str, Tensor]:
    """Return all weights with theta adapted: `steps` steps of rate `alpha` on the mean over
    `samples` noisy losses.
    """
    w = dict(w)
    x, y = support
    for k in range(steps):
        losses = [
            F.cross_entropy(forward(w, x, noise(k, s), gated=gated), y) for s in range(samples)
        ]
        loss = torch.stack(losses).mean()
        gradients = torch.autograd.grad(
            loss, [w[name] for name in THETA], create_graph=second_order
        )
        w |= {name: w[name] - alpha * g for name, g in zip(THETA, gradients, strict=True)}
    return w
