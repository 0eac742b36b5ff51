"""`conv4`: how its weights start."""

from __future__ import annotations

import pytest
import torch
from trainkit_plugins.maml.conv4 import Conv4


def test_weights_start_as_the_papers_say_or_as_torch_makes_them() -> None:
    torch.manual_seed(0)
    papers = Conv4(channels=64)
    assert papers.conv2.weight.abs().max() <= 0.04
    assert 0.015 < papers.conv2.weight.std() < 0.02  # a deviation of 0.02, cut at two of them
    assert 0.017 < papers.head.weight.std() < 0.023
    assert not papers.conv2.bias.any()
    own = Conv4(channels=64, init="torch")
    for layer, inputs in ((own.conv1, 9), (own.conv2, 576), (own.head, 64)):
        bound = inputs**-0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert 0 < layer.bias.abs().max() <= bound


def test_another_initialisation_is_refused() -> None:
    with pytest.raises(ValueError, match="init 'kaiming': give one of papers, torch"):
        Conv4(init="kaiming")
