"""The noise of Meta Dropout: multiplicative on what enters a nonlinearity, additive on the logits.

Letters, as in the authors' code (Lee et al., *Meta Dropout*, ICLR 2020):

- h: what a layer reads; u: what it gives (weights W, b: part of theta, adapted to each task)
- m: mean of the noise, from the same h by a layer of the same shape (weights V, c: part of phi,
  never adapted)
- eps: standard normal, one number per position and channel; a = m + eps
- f: what the classifier reads; s: standard deviation of the noise on its logits (weights v, e: part
  of phi)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Mode = Literal["off", "mean", "sample"]

UNIT = math.log(math.e - 1)
"""softplus(UNIT) = 1: a gate with this bias and no weights lets everything pass as it is."""


@dataclass
class Switch:
    """What all noise of one model does at the moment.

    Attributes:
        mode: `off`: nothing; `mean`: the gate at its mean noise, no noise on the logits; `sample`:
            draw.
        generator: what `sample` draws from, on the device of the activations.
    """

    mode: Mode = "mean"
    generator: torch.Generator | None = None


def standard_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw eps in the shape, type, place and memory format of `like`."""
    channels_last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    # Drawn as a plain block, which is several times as fast as drawing into permuted memory.
    shape = like.permute(0, 2, 3, 1).shape if channels_last else like.shape
    eps = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
    return eps.permute(0, 3, 1, 2) if channels_last else eps


def gate(m: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return softplus(m + eps), or softplus(m) without a generator.

    Half precision is left for this: eps would be too coarse in it.
    """
    a = m.to(torch.promote_types(m.dtype, torch.float32))
    if generator is not None:
        a = a + standard_normal(a, generator)
    return F.softplus(a).to(m.dtype)


class Gate(nn.Module):
    """Multiplies what one layer gives by softplus(a).

    Args:
        phi: the layers that give m, one for each time that the gated layer is called in a forward
            pass.
        switch: shared by all noise of the model.
    """

    def __init__(self, phi: Sequence[nn.Module], switch: Switch) -> None:
        super().__init__()
        self.phi = nn.ModuleList(phi)
        self.switch = switch
        self.calls = 0

    def hook(self, layer: nn.Module, args: tuple[Tensor, ...], u: Tensor) -> Tensor | None:
        """Gate `u`, which `layer` has made of `args`: a forward hook."""
        if self.switch.mode == "off":
            return None
        phi = self.phi[self.calls % len(self.phi)]
        self.calls += 1
        m = phi(_padded(args[0], u, phi))
        generator = None
        if self.switch.mode == "sample":
            generator = self.switch.generator
        return u * gate(m, generator).to(u.dtype)


class LogitNoise(nn.Module):
    """Adds s * eps to the logits, with one s per example for all classes; only where noise is
    drawn.

    Args:
        phi: the layer that gives s before softplus, one number per example.
        switch: shared by all noise of the model.
    """

    def __init__(self, phi: nn.Linear, switch: Switch) -> None:
        super().__init__()
        self.phi = phi
        self.switch = switch

    def hook(
        self, classifier: nn.Module, args: tuple[Tensor, ...], logits: Tensor
    ) -> Tensor | None:
        """Disturb `logits`, which `classifier` has made of `args`: a forward hook."""
        if self.switch.mode != "sample" or self.switch.generator is None:
            return None
        s = gate(self.phi(args[0]))
        noise = s.to(torch.promote_types(s.dtype, torch.float32)) * standard_normal(
            logits.to(torch.promote_types(logits.dtype, torch.float32)), self.switch.generator
        )
        return logits + noise.to(logits.dtype)


class MetaDropout(nn.Module):
    """All noise of one model, with its parameters phi; made by `attach`.

    By default the gates are at their mean, as the paper has it for every forward pass but those of
    the inner loop.

    Args:
        gates: for each gated layer, by its name.
        logits: noise on the logits, if any.
        switch: the one that they share.
    """

    def __init__(
        self, gates: Mapping[str, Gate], logits: LogitNoise | None, switch: Switch
    ) -> None:
        super().__init__()
        # A module's name may hold no dot.
        self.gates = nn.ModuleDict({name.replace(".", "/"): gate for name, gate in gates.items()})
        self.logits = logits
        self.switch = switch

    @property
    def sites(self) -> list[str]:
        """Names of the gated layers, in the order of their first call."""
        return [name.replace("/", ".") for name in self.gates]

    @contextmanager
    def sampling(self, generator: torch.Generator) -> Iterator[None]:
        """Draw noise from `generator` in the forward passes of this block."""
        with self.switched("sample", generator):
            yield

    @contextmanager
    def switched(self, mode: Mode, generator: torch.Generator | None = None) -> Iterator[None]:
        """Set the mode for the forward passes of this block.

        Raises:
            ValueError: `sample` without a generator.
        """
        if mode == "sample" and generator is None:
            raise ValueError("sampling needs a torch.Generator to draw from")
        before = self.switch.mode, self.switch.generator
        self.switch.mode, self.switch.generator = mode, generator
        try:
            yield
        finally:
            self.switch.mode, self.switch.generator = before

    def begin(self, model: nn.Module, args: tuple[object, ...]) -> None:
        """Count the calls of each layer from 0 again: a forward pre-hook of the whole model."""
        for gate in self.gates.values():
            cast(Gate, gate).calls = 0


def _padded(h: Tensor, u: Tensor, phi: nn.Module) -> Tensor:
    """Pad `h` so that a convolution `phi` gives maps as large as `u`: some layers pad by the
    size of what they read.
    """
    if not isinstance(phi, nn.Conv2d) or isinstance(phi.padding, str):
        return h
    padding: list[int] = []
    for axis in (1, 0):  # F.pad takes the last axis first
        reach = phi.dilation[axis] * (phi.kernel_size[axis] - 1) + 1
        missing = (
            (u.shape[2 + axis] - 1) * phi.stride[axis]
            + reach
            - h.shape[2 + axis]
            - 2 * phi.padding[axis]
        )
        padding += [max(missing, 0) // 2, max(missing, 0) - max(missing, 0) // 2]
    return F.pad(h, padding) if any(padding) else h


def noise_layer(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Return a layer of the same shape as `layer`, with a bias; its values are not yet set, and
    nothing is drawn.
    """
    device, dtype = layer.weight.device, layer.weight.dtype
    if isinstance(layer, nn.Linear):
        return nn.Linear(
            layer.in_features, layer.out_features, device="meta", dtype=dtype
        ).to_empty(device=device)
    twin = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        cast("tuple[int, int]", layer.kernel_size),
        stride=cast("tuple[int, int]", layer.stride),
        padding=cast("tuple[int, int]", layer.padding),
        dilation=cast("tuple[int, int]", layer.dilation),
        groups=layer.groups,
        padding_mode=cast(Any, layer.padding_mode),
        device="meta",
        dtype=dtype,
    ).to_empty(device=device)
    if layer.weight.is_contiguous(memory_format=torch.channels_last):
        twin.to(memory_format=torch.channels_last)
    return twin


def init_paper(phi: nn.Conv2d | nn.Linear, generator: torch.Generator | None = None) -> None:
    """Set weights as the authors do, truncated normal with deviation 0.02, and biases to 0: a
    gate near 0.69.
    """
    with torch.no_grad():
        nn.init.trunc_normal_(phi.weight, std=0.02, a=-0.04, b=0.04, generator=generator)
        nn.init.zeros_(cast(Tensor, phi.bias))


def init_unit(phi: nn.Conv2d | nn.Linear) -> None:
    """Set weights to 0 and biases so that the mean gate is 1 everywhere: the network as it was."""
    with torch.no_grad():
        nn.init.zeros_(phi.weight)
        nn.init.constant_(cast(Tensor, phi.bias), UNIT)


def init_logits(phi: nn.Linear, generator: torch.Generator | None = None) -> None:
    """Set weights normal with deviation 0.02 and the bias to 0, as the authors do: s near 0.69."""
    with torch.no_grad():
        nn.init.normal_(phi.weight, std=0.02, generator=generator)
        nn.init.zeros_(phi.bias)
