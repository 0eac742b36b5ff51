"""Running statistics measured anew on data, for weights whose own are stale: exact over all of it.

The estimator pools all examples, as the papers' moments are those of the whole data set. The one in
ema averages the batches' variances, which leaves out how much their means differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..common.preserve import measuring_statistics


@torch.no_grad()
def pooled_statistics(model: nn.Module, inputs: Iterable[Tensor]) -> int:
    """Set the running moments of every batch norm to those of its inputs over all of `inputs`
    together.

    mean = E[x] and var = E[x^2] - E[x]^2 over all examples and places of all batches, pooled by
    their counts, while the layers before normalize each batch by its own statistics, as in
    training. (An average of the batches' variances, which torch.optim.swa_utils.update_bn gives,
    leaves out how much their means differ.) Only batch norm is in training mode: dropout and
    stochastic depth are off, nothing draws random numbers.

    Args:
        model: any module with one tensor argument; left in the modes it was in. Layers without
            running statistics are left alone.
        inputs: batches of it; one of a single example is skipped, as it may have no variance.

    Returns:
        The number of examples used; 0 without such a layer, and then nothing is read.

    Raises:
        ValueError: there is no batch of two or more examples.
    """
    layers = [
        m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
    ]
    if not layers:
        return 0
    pooled = {layer: Moments() for layer in layers}
    hooks = [layer.register_forward_pre_hook(_adding(moments)) for layer, moments in pooled.items()]
    examples = batches = 0
    try:
        with measuring_statistics(model, layers):
            for layer in layers:
                layer.momentum = 0.0  # it is told its moments at the end
            for batch in inputs:
                if len(batch) > 1:
                    model(batch)
                    examples, batches = examples + len(batch), batches + 1
    finally:
        for hook in hooks:
            hook.remove()
    if not batches:
        raise ValueError("running statistics need a batch of two or more examples; there was none")
    for layer, moments in pooled.items():
        moments.write(layer, batches)
    return examples


class Moments:
    """Count, mean and sum of squared deviations per channel [C], pooled over batches (Chan,
    Golub and LeVeque 1983).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """Take in a batch [N, C, ...]."""
        count = x.numel() // x.shape[1]
        dims = [d for d in range(x.ndim) if d != 1]
        # Double where the device has it: a whole data set is summed.
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        var, mean = (t.to(wide) for t in torch.var_mean(x.float(), dim=dims, correction=0))
        total = self.count + count
        step = mean - self.mean
        self.mean = self.mean + step * (count / total)
        self.squares = self.squares + var * count + step * step * (self.count * count / total)
        self.count = total

    def write(self, layer: _BatchNorm, batches: int) -> None:
        """Put the pooled moments into a layer's buffers; a layer that was not called keeps its
        own.
        """
        if not self.count or layer.running_mean is None or layer.running_var is None:
            return
        layer.running_mean.copy_(torch.as_tensor(self.mean))
        layer.running_var.copy_(torch.as_tensor(self.squares) / self.count)
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(batches)


def _adding(moments: Moments) -> Callable[[nn.Module, Any], None]:
    def hook(module: nn.Module, inputs: Any) -> None:
        moments.add(inputs[0])

    return hook
