"""Sharpness-aware minimization (Foret et al. 2021): step along the gradient at the worst point
near the weights.
"""

import torch
from pydantic import Field

from trainkit import Plugin, hookimpl


class SAM(Plugin):
    """Replace the gradient g at the weights w by the gradient at w + rho * g / |g|."""

    citation = """@inproceedings{foret2021sharpness,
  title={Sharpness-Aware Minimization for Efficiently Improving Generalization},
  author={Foret, Pierre and Kleiner, Ariel and Mobahi, Hossein and Neyshabur, Behnam},
  booktitle={International Conference on Learning Representations},
  year={2021}
}"""
    neutral = {"rho": 0.0}
    before = ("grad_clip",)  # which then clips the gradient that the step is made of
    rho: float = Field(0.05, ge=0, allow_inf_nan=False, description="distance to the worst point")

    @hookimpl
    @torch.no_grad()
    def before_optimizer_step(self, optimizer, window, run):
        """Go to the worst point, take the gradient of the whole window there, and come back."""
        if self.rho == 0:
            return
        held = [p for group in optimizer.param_groups for p in group["params"]]
        weights = [p for p in held if p.grad is not None]
        start = [p.clone() for p in weights]
        gradients = [p.grad for p in weights]
        scale = self.rho / (torch.nn.utils.get_total_norm(gradients) + 1e-12)
        torch._foreach_add_(weights, torch._foreach_mul(gradients, scale))
        with torch.enable_grad():
            run.log.record("sam/loss", window.differentiate())
        torch._foreach_copy_(weights, start)
