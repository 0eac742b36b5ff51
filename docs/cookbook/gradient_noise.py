"""Gradient noise (Neelakantan et al. 2015): Gaussian noise on the gradients, less and less of
it.
"""

import torch
from pydantic import Field

from trainkit import Plugin, hookimpl


class GradientNoise(Plugin):
    """Add noise of variance eta / (1 + step)^gamma to every gradient."""

    citation = """@article{neelakantan2015adding,
  title={Adding Gradient Noise Improves Learning for Very Deep Networks},
  author={Neelakantan, Arvind and Vilnis, Luke and Le, Quoc V. and Sutskever, Ilya and others},
  journal={arXiv preprint arXiv:1511.06807},
  year={2015}
}"""
    neutral = {"eta": 0.0}
    before = ("grad_clip",)
    eta: float = Field(0.01, ge=0, allow_inf_nan=False, description="variance at the first step")
    gamma: float = Field(0.55, ge=0, allow_inf_nan=False, description="how fast it falls")

    @hookimpl
    def before_optimizer_step(self, model, run):
        """Add the noise, the same on all ranks."""
        deviation = (self.eta / (1 + run.step) ** self.gamma) ** 0.5
        for parameter in model.parameters():
            if parameter.grad is not None:  # frozen, or reached by no loss
                generator = self.generator(parameter.device)
                noise = torch.empty_like(parameter.grad).normal_(generator=generator)
                parameter.grad.add_(noise, alpha=deviation)
