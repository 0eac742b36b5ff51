"""How class weights go with the shots of a class, and step multipliers with the size of a task:
the authors' tables.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ByShots(NamedTuple):
    """Class weights in tasks whose classes differ in their number of examples, by that number; NaN
    where there is none.

    Attributes:
        mean: mean class weight at 1, 2, … shots [most].
        deviation: its standard deviation [most].
        inverse: what weights proportional to 1/shots would be for the same classes, on average
            [most].
        unevenness: mean over tasks of equal shots of the largest |ways · ω − 1|, a scalar: 0 for
            uniform weights.
    """

    mean: Tensor
    deviation: Tensor
    inverse: Tensor
    unevenness: Tensor


def weights_by_shots(shots: Tensor, omega: Tensor, most: int) -> ByShots:
    """Return what class weights were at each number of shots.

    Args:
        shots: examples of each class [tasks, ways].
        omega: class weights [tasks, ways].
        most: shots up to which to tell; classes with more are left out.
    """
    omega = omega.double()
    mixed = (shots != shots[:, :1]).any(1)
    inverse = 1 / shots.double().clamp(min=1)
    inverse = inverse / inverse.sum(1, keepdim=True)
    at = shots[mixed].flatten()
    member = (at == torch.arange(1, most + 1, device=at.device).unsqueeze(1)).double()

    def mean(values: Tensor) -> Tensor:
        return member @ values.flatten() / member.sum(1)  # of nothing: 0/0, NaN

    middle = mean(omega[mixed])
    deviation = (mean(omega[mixed].square()) - middle.square()).clamp(min=0).sqrt()
    off = (shots.shape[1] * omega[~mixed] - 1).abs().amax(1)
    return ByShots(middle, deviation, mean(inverse[mixed]), off.mean())


class BySize(NamedTuple):
    """Step multipliers by the size of the support set.

    Attributes:
        size: mean number of examples of the tasks in each bin [bins]; NaN where there is none.
        gamma: mean multiplier of each group [bins, groups].
    """

    size: Tensor
    gamma: Tensor


def multipliers_by_size(sizes: Tensor, gamma: Tensor, bins: int = 8) -> BySize:
    """Return what step multipliers were in `bins` ranges of equal width between the smallest and
    the largest task.

    Args:
        sizes: examples in each support set [tasks].
        gamma: step multipliers [tasks, groups].
        bins: number of ranges.
    """
    sizes, low = sizes.double(), sizes.double().min()
    width = (sizes.max() - low).clamp(min=1) / bins
    index = ((sizes - low) / width).floor().clamp(max=bins - 1)
    member = (index == torch.arange(bins, device=index.device).unsqueeze(1)).double()
    member = member / member.sum(1, keepdim=True)
    return BySize(member @ sizes, member @ gamma.double())
