"""The layer against numbers from the authors' own code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from trainkit_plugins.batch_norm import convert_batch_norm, normalize_blocks, update_moments

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {
    "batch": (8, 6),
    "ghost4": (4, 6),
    "ghost2": (2, 6),
    "group": (1, 3),
    "batchgroup": (2, 3),
    "batchgroup_c2": (4, 3),
}


@pytest.fixture(params=CASES)
def case(request):
    with np.load(GOLDEN / f"norm_{request.param}.npz", allow_pickle=False) as data:
        arrays = {key: data[key] for key in data.files}
    numbers = {k: torch.from_numpy(v).double() for k, v in arrays.items() if v.dtype.kind == "f"}
    return request.param, numbers, arrays


def layer_of(case):
    name, numbers, _ = case
    n, groups = CASES[name]
    layer = nn.BatchNorm2d(6, eps=1e-5, momentum=0.1).double()
    with torch.no_grad():
        layer.weight.copy_(numbers["gamma"])
        layer.bias.copy_(numbers["beta"])
    convert_batch_norm(layer, ghost_size=n, channel_groups=groups, blocks="consecutive")
    return layer


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


def test_the_files_were_made_with_these_settings(case):
    name, numbers, arrays = case
    n, groups = CASES[name]
    by_count = "cfg_channel_groups" in arrays
    stored = arrays["cfg_channel_groups"] if by_count else 6 // arrays["cfg_channels_per_group"]
    assert (arrays["cfg_examples_per_group"], stored) == (n, groups)
    assert (numbers["cfg_decay"].item(), numbers["cfg_eps"].item()) == (0.9, 1e-5)


def test_outputs_of_three_batches(case):
    layer = layer_of(case)
    for x, y in zip(case[1]["x"], case[1]["y"], strict=True):
        close(layer(x), y)


def test_gradients(case):
    layer, numbers = layer_of(case), case[1]
    x = numbers["x"][0].clone().requires_grad_()
    (layer(x) * numbers["cotangent"]).sum().backward()
    close(x.grad, numbers["grad_x"])
    close(layer.weight.grad, numbers["grad_gamma"])
    close(layer.bias.grad, numbers["grad_beta"])


def test_running_moments(case):
    name, numbers, _ = case
    n, groups = CASES[name]
    m1, var = torch.zeros(6).double(), torch.ones(6).double()
    layer = layer_of(case)
    for x in numbers["x"]:
        layer(x)
        done = normalize_blocks(x, None, None, ghost_size=n, channel_groups=groups, eps=1e-5)
        update_moments(m1, var, done.mean, done.var, 0.1)
    close(m1, numbers["moving_mean"])
    close(var, numbers["moving_mean_sq"] - numbers["moving_mean"] ** 2)
    close(layer.running_mean, m1)
    if name != "batch":  # where the layer is torch's own and so are its buffers
        torch.testing.assert_close(layer.running_var, var)


def test_inference_at_four_example_weights(case):
    layer, numbers = layer_of(case).eval(), case[1]
    layer.running_mean.copy_(numbers["moving_mean"])
    layer.running_var.copy_(numbers["moving_mean_sq"] - numbers["moving_mean"] ** 2)
    for alpha, y in zip(numbers["alphas"], numbers["y_eval"], strict=True):
        convert_batch_norm(layer, example_weight=alpha.item())
        close(layer(numbers["x_eval"]), y)
