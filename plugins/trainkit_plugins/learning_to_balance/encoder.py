"""The inference network: from the support set of a task, a set of sets of images, to the posterior
of its latents.

Statistics pooling represents a set by the mean, the biased variance and the cardinality of what is
in it; it is applied to the examples of each class, and then to the classes (Lee et al., *Learning
to Balance*, ICLR 2020, and the authors' release).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .posterior import DiagonalNormal, Posterior

LARGEST = 84
"""Pixels of the longest side that the network sees: the largest images of the paper. Larger ones
are averaged down.
"""
_CONV, _EXAMPLE, _HIDDEN, _CLASS, _HEAD, _MIXED = 10, 64, 128, 32, 64, 4


class InferenceNetwork(nn.Module):
    """q(ω̃, γ̃, z̃ | support) of a task with any number of classes and of examples in each.

    Exactly the authors' network up to `LARGEST` pixels, but for an initialization that would leave
    a part of it without any gradient (`_enliven`). It has no state besides its parameters.

    Args:
        in_chans: channels of the images.
        size: height and width of the images, at least 4.
        max_shot: examples of a class at which the cardinality, (n − 1)/(max_shot − 1), is 1; at
            least 2.
        groups: dimensions of γ̃, 0 to leave it out.
        channels: dimensions of z̃, 0 to leave it out.
        omega: whether there is ω̃.

    Raises:
        ValueError: images too small, `max_shot` below 2, or no latent at all.
    """

    def __init__(
        self,
        in_chans: int,
        size: tuple[int, int],
        *,
        max_shot: int,
        groups: int,
        channels: int,
        omega: bool = True,
    ) -> None:
        super().__init__()
        if min(size) < 4:
            raise ValueError(
                f"images must have at least 4 x 4 pixels, for they are pooled twice; got {size}"
            )
        if max_shot < 2:
            raise ValueError(f"max_shot must be at least 2; got {max_shot}")
        if not (omega or groups or channels):
            raise ValueError("there is nothing to infer: omega, gamma and z are all left out")
        self.max_shot = max_shot
        self.size = (min(size[0], LARGEST), min(size[1], LARGEST))
        self.conv1 = nn.Conv2d(in_chans, _CONV, 3, padding=1)
        self.conv2 = nn.Conv2d(_CONV, _CONV, 3, padding=1)
        self.dense1 = nn.Linear(_CONV * (self.size[0] // 4) * (self.size[1] // 4), _EXAMPLE)
        self.interact1 = nn.Linear(3, _MIXED)
        self.omega = _Head(_EXAMPLE * _MIXED, 1) if omega else None
        whole = bool(groups or channels)  # the second pooling serves γ̃ and z̃ only
        self.dense2 = nn.Linear(_EXAMPLE * _MIXED, _HIDDEN) if whole else None
        self.dense3 = nn.Linear(_HIDDEN, _CLASS) if whole else None
        self.interact2 = nn.Linear(3, _MIXED) if whole else None
        self.gamma = _Head(_CLASS * _MIXED, groups) if groups else None
        self.z = _Head(_CLASS * _MIXED, channels) if channels else None
        self.apply(_initialize)
        _enliven(self.interact1)
        if self.interact2 is not None:
            _enliven(self.interact2)

    def forward(self, images: Tensor, targets: Tensor, ways: int) -> Posterior:
        """Return the posterior of one task, in full precision also under autocast.

        Args:
            images: the support images [N, C, H, W].
            targets: their classes [N], from 0 to ways − 1; every class has at least one.
            ways: number of classes.
        """
        with torch.autocast(images.device.type, enabled=False):
            h = self._examples(images.to(self.conv1.weight.dtype))
            member = torch.eye(ways, dtype=h.dtype, device=h.device)[:, targets]  # [ways, N]
            s, cardinality = self._classes(h, member)
            omega = gamma = z = None
            if self.omega is not None:
                mu, sigma = self.omega(s)
                omega = DiagonalNormal(mu.squeeze(1), sigma.squeeze(1))
            if self.dense2 is not None and self.dense3 is not None and self.interact2 is not None:
                v = self.dense3(F.relu(self.dense2(s)))
                pooled = _statistics(v.mean(0), v.var(0, correction=0), cardinality.mean())
                v = F.relu(self.interact2(pooled)).flatten()
                if self.gamma is not None:
                    gamma = self.gamma(v)
                if self.z is not None:
                    z = self.z(v)
            return Posterior(omega, gamma, z)

    def _examples(self, x: Tensor) -> Tensor:
        """Return a vector for each image [N, 64]."""
        if x.shape[-2:] != self.size:
            x = F.adaptive_avg_pool2d(x, self.size)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        out: Tensor = self.dense1(x.flatten(1))
        return out

    def _classes(self, h: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        """Return a vector for each class [ways, 256] and the normalised number of its examples
        [ways].
        """
        shots = member.sum(1)
        share = member / shots.clamp(min=1).unsqueeze(1)
        mean = share @ h
        # Deviations from the class mean, example by example: E[h²] − E[h]² would cancel.
        variance = share @ (h - member.T @ mean).square()
        cardinality = (shots - 1) / (self.max_shot - 1)
        pooled = _statistics(mean, variance, cardinality.unsqueeze(1))
        return F.relu(self.interact1(pooled)).flatten(1), cardinality


class _Head(nn.Module):
    """One hidden layer, then means and softplus standard deviations [..., dims]."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, _HEAD)
        self.mu = nn.Linear(_HEAD, dims)
        self.rho = nn.Linear(_HEAD, dims)

    def forward(self, x: Tensor) -> DiagonalNormal:
        x = F.relu(self.dense(x))
        return DiagonalNormal(self.mu(x), F.softplus(self.rho(x)))


def _statistics(mean: Tensor, variance: Tensor, cardinality: Tensor) -> Tensor:
    """Stack the three statistics [..., d, 3]; the cardinality is the same for all d features."""
    return torch.stack([mean, variance, cardinality.expand_as(mean)], dim=-1)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _enliven(interact: nn.Linear) -> None:
    """Make sure that a ReLU after `interact`, which mixes three statistics, passes something on.

    At the start means and variances are small next to the cardinality, so the signs of its weights
    alone decide which units are on. With one draw in sixteen none is: no gradient would ever reach
    the layer or what lies below it. Such a draw is mirrored.
    """
    with torch.no_grad():
        cardinality = interact.weight[:, 2]
        if not (cardinality > 0).any():
            cardinality.neg_()
