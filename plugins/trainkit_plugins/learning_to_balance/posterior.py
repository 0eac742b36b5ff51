"""Normal posteriors over the balancing latents of a task, against a standard normal prior.

Letters as in the paper: ω class weights, γ step multipliers, z modulation of the initial
parameters. What is held here are the unconstrained latents (the paper's letters with a tilde);
`balance.py` turns them into ω, γ and z.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DiagonalNormal(NamedTuple):
    """Independent normal distributions: means and standard deviations, both [d]."""

    mu: Tensor
    sigma: Tensor

    def kl(self) -> Tensor:
        """Return KL(self ‖ N(0, I)) in nats, a scalar: Σ −log σ + (σ² + μ²)/2 − 1/2."""
        return (-self.sigma.log() + (self.sigma.square() + self.mu.square() - 1) / 2).sum()

    def sample(self, generator: torch.Generator) -> Tensor:
        """Return one draw [d], differentiable in μ and σ.

        Args:
            generator: a stream on the CPU, so that every device gets the same draws.
        """
        noise = torch.randn(self.mu.shape, generator=generator, dtype=self.mu.dtype)
        return self.mu + self.sigma * noise.to(self.mu.device)


class Latents(NamedTuple):
    """One value of each latent, None where the variable is switched off.

    Attributes:
        omega: one number per class [ways].
        gamma: one number per parameter group [groups].
        z: one number per modulated channel [channels].
    """

    omega: Tensor | None
    gamma: Tensor | None
    z: Tensor | None


class Posterior(NamedTuple):
    """q(ω̃, γ̃, z̃ | support), the latents independent of one another; None where a variable is
    switched off.
    """

    omega: DiagonalNormal | None
    gamma: DiagonalNormal | None
    z: DiagonalNormal | None

    def kl(self) -> Tensor:
        """Return the KL divergence from the standard normal prior in nats, summed over what is
        switched on.
        """
        return torch.stack(list(self.divergences().values())).sum()

    def divergences(self) -> dict[str, Tensor]:
        """Return the divergence of each variable that is switched on, by its name."""
        return {name: q.kl() for name, q in zip(self._fields, self, strict=True) if q is not None}

    def mean(self) -> Latents:
        """Return the posterior means."""
        return Latents(*(None if q is None else q.mu for q in self))

    def sample(self, generator: torch.Generator) -> Latents:
        """Return one draw; the latents are drawn in the order ω, γ, z."""
        return Latents(*(None if q is None else q.sample(generator) for q in self))
