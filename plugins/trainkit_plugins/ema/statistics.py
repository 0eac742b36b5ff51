"""Batch-norm statistics of weights that have never been trained with: measured on data.

The estimator is that of `torch.optim.swa_utils.update_bn`: the average of the batches' own means
and variances, made by the layers themselves. The one in batch_norm pools all examples instead and
has another value: it adds how much the batches' means differ. The two are not made one, because the
validation losses of runs with `ema` rest on this one to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..common.preserve import measuring_statistics


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch-norm layers of `model` that keep running statistics; frozen ones are
    none.
    """
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@torch.no_grad()
def average_statistics(
    model: nn.Module, inputs: Iterable[Tensor], layers: Sequence[_BatchNorm] | None = None
) -> int:
    """Set batch-norm layers' running means and variances to their averages over `inputs`.

    mean = 1/n sum_i mean_i,  var = 1/n sum_i var_i  over the n batches, each counting once, where
    mean_i and var_i (unbiased) are those of batch i as the layer sees it while the layers before it
    normalize with batch i too.

    Only batch norm runs in training mode: dropout and stochastic depth are off, so nothing draws
    random numbers, and the statistics are those of the deterministic network
    (torch.optim.swa_utils.update_bn leaves dropout on). Modes and momenta are as before afterwards;
    `num_batches_tracked` is n.

    Args:
        model: any module with one tensor argument; left in the modes it was in.
        inputs: batches of it. A batch with one example is skipped: it has no variance over 1x1
            feature maps.
        layers: which layers of `model` to measure; the others normalize with what they have.
            Default: all.

    Returns:
        n, the number of batches used; 0 where there is no such layer, and then `inputs` is not
        read.

    Raises:
        ValueError: every batch was skipped, or there was none.
    """
    layers = batch_norms(model) if layers is None else layers
    if not layers:
        return 0
    used = 0
    with measuring_statistics(model, layers):
        for layer in layers:
            layer.reset_running_stats()
        for batch in inputs:
            if len(batch) < 2:
                continue
            used += 1
            # 1/n at batch n makes the running average a plain one; momentum=None would too, but
            # reads a counter back from the device in every layer.
            for layer in layers:
                layer.momentum = 1.0 / used
            model(batch)
    if used == 0:
        raise ValueError(
            "batch-norm statistics need at least one batch of two or more examples; there was none"
        )
    return used
