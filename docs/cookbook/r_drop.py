"""R-Drop (Wu et al. 2021): two passes with different dropout shall say the same."""

import torch
from pydantic import Field

from trainkit import Plugin, hookimpl


class RDrop(Plugin):
    """Loss = mean cross entropy of both passes + alpha * (KL(p || q) + KL(q || p)) / 2."""

    citation = """@inproceedings{wu2021rdrop,
  title={R-Drop: Regularized Dropout for Neural Networks},
  author={Wu, Lijun and Li, Juntao and Wang, Yue and Meng, Qi and Qin, Tao and others},
  booktitle={Advances in Neural Information Processing Systems},
  year={2021}}"""
    neutral = {"alpha": 0.0}
    before = ("mixup",)  # so that both copies of an image are mixed alike
    alpha: float = Field(1.0, ge=0, allow_inf_nan=False, description="weight of the divergence")

    @hookimpl(wrapper=True)
    def prepare_batch(self):
        """Put every image into the batch twice: dropout treats the two differently."""
        batch = yield
        if self.alpha == 0:
            return batch
        inputs, targets = (torch.cat([part] * 2) for part in (batch.inputs, batch.targets))
        return batch._replace(inputs=inputs, targets=targets)

    @hookimpl(wrapper=True)
    def compute_criterion(self, output, run):
        """Add the divergence between the two halves."""
        loss = yield
        if self.alpha == 0:
            return loss
        whole = torch.promote_types(output.dtype, torch.float32)  # logits may be bf16
        p, q = output.log_softmax(1, dtype=whole).chunk(2)
        divergence = ((p.exp() - q.exp()) * (p - q)).sum(1).mean() / 2
        run.log.record("r_drop/divergence", divergence)
        return loss + self.alpha * divergence
