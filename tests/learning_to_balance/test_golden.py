"""The maths against the numbers of the authors' release, and the slow twin against both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call
from trainkit_plugins.learning_to_balance import (
    InferenceNetwork,
    class_weights,
    modulate,
    scale_steps,
)
from trainkit_plugins.maml import Conv4, InnerLoop, TaskPlan, task_loss

from tests.reference import learning_to_balance as twin
from tests.reference.learning_to_balance_names import backbone_weights, encoder_weights, images
from trainkit import Batch

GOLDEN = Path(__file__).parents[1] / "golden" / "l2b.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def authors_weights(golden):
    """Return the weights in the authors' names and layouts, and the gradients that they got."""
    weights = {
        n[2:].removesuffix(":0"): v.double() for n, v in golden.items() if n.startswith("w:")
    }
    gradients = {
        n[2:].removesuffix(":0"): v.double() for n, v in golden.items() if n.startswith("g:")
    }
    assert weights.keys() == gradients.keys()
    return {n: v.requires_grad_() for n, v in weights.items()}, gradients


def sets(golden):
    return (golden["xtr"].double(), golden["ytr"]), (golden["xte"].double(), golden["yte"])


def check_values(golden, q, cent, kl, pred):
    for name, (mu, sigma) in q.items():
        torch.testing.assert_close(mu.detach(), golden[f"{name}_mu"].double(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(
            sigma.detach(), golden[f"{name}_sd"].double(), rtol=1e-5, atol=1e-7
        )
    assert cent.item() == pytest.approx(float(golden["cent"]), rel=1e-6)
    assert kl.item() == pytest.approx(float(golden["kl"]), rel=1e-6)
    torch.testing.assert_close(pred.detach(), golden["pred"].double(), rtol=1e-5, atol=1e-6)


def check_gradients(found, wanted):
    """Compare each tensor relative to its largest entry; a bias before batch statistics has none
    but rounding.
    """
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        error, size = (gradient - wanted[name]).abs().max(), wanted[name].abs().max()
        if name.startswith(("theta.conv", "alpha.conv")) and name.endswith("_b"):
            assert gradient.abs().max() < 1e-12, name
            assert size < 3e-6, name
        else:
            assert error < 2e-4 * size, f"{name}: {error} of {size}"


def test_the_slow_twin_has_the_authors_numbers(golden):
    w, wanted = authors_weights(golden)
    cent, kl, pred, _ = twin.task(w, *sets(golden), ways=5, max_shot=50, steps=2)
    check_values(golden, twin.posterior(w, *sets(golden)[0], 5, 50), cent, kl, pred)
    check_gradients(
        dict(zip(w, torch.autograd.grad(cent + kl, list(w.values())), strict=True)), wanted
    )


def test_the_plugins_parts_have_the_authors_numbers(golden):
    w, wanted = authors_weights(golden)
    (x, y), (x_query, y_query) = sets(golden)
    support, query = Batch(images(x), y), Batch(images(x_query), y_query)
    model = Conv4(num_classes=5, in_chans=3, img_size=32, channels=32).double()
    encoder = InferenceNetwork(3, (32, 32), max_shot=50, groups=5, channels=256)
    q = functional_call(encoder, encoder_weights(w, 8), (*support, 5))
    theta, alpha = backbone_weights(w, 2)
    layers = ["conv1", "conv2", "conv3", "conv4"]
    latents = q.mean()
    groups = {name: [*layers, "head"].index(name.split(".")[0]) for name in alpha}
    plan = TaskPlan(
        modulate(theta, latents.z, [f"{n}.weight" for n in layers], [f"{n}.bias" for n in layers]),
        tuple(alpha),
        scale_steps(alpha, latents.gamma, groups),
        class_weights(latents.omega),
    )
    cent, logits = task_loss(model, plan, support, query, InnerLoop(steps=2))
    kl = q.kl() / (len(y) + len(y_query))
    check_values(
        golden, {n: getattr(q, n) for n in ("omega", "gamma", "z")}, cent, kl, logits.softmax(1)
    )
    check_gradients(
        dict(zip(w, torch.autograd.grad(cent + kl, list(w.values())), strict=True)), wanted
    )
