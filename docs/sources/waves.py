"""Noisy waves: a source of data in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from trainkit import DataSource

if TYPE_CHECKING:
    from trainkit import Data, Device, Recipe


class Waves(DataSource):
    """Points of noisy sine and cosine waves of random frequency; which of the two is the class."""

    rows: int = Field(200, ge=10, le=10**6, description="waves to train on; a quarter to validate")
    points: int = Field(16, ge=2, le=10**4, description="points of a wave, in [0, 2 pi]")
    noise: float = Field(0.3, ge=0, le=100, description="standard deviation of the noise")
    seed: int = Field(0, ge=0, lt=2**63, description="of all waves; the recipe's has no part in it")

    def build(self, recipe: Recipe, device: Device) -> Data:
        """Return the waves for this rank."""
        import torch

        from trainkit import Rows, make_streams

        generator = torch.Generator().manual_seed(self.seed)
        targets = torch.arange(self.rows + self.rows // 4) % 2
        frequency = 1 + torch.rand(len(targets), 1, generator=generator)
        phase = frequency * torch.linspace(0, 2 * torch.pi, self.points)
        inputs = torch.where(targets[:, None] == 0, phase.sin(), phase.cos())
        inputs += self.noise * torch.randn(inputs.shape, generator=generator)
        train = Rows(inputs[: self.rows], targets[: self.rows])
        val = Rows(inputs[self.rows :], targets[self.rows :])
        summary = f"{len(train)} waves to train on, {len(val)} to validate"
        return make_streams(
            train, val, recipe, device, outputs=2, input_size=(self.points,), summary=summary
        )
