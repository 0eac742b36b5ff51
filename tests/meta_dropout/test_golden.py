"""The network of the authors' own implementation: loss, accuracy and every gradient after two
inner steps.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainkit_plugins.maml import Conv4, InnerLoop, plan_for, task_loss
from trainkit_plugins.meta_dropout import attach

from tests.reference.meta_dropout import adapt, forward
from trainkit import Batch

GOLDEN = Path(__file__).parents[1] / "golden" / "metadrop.npz"
THEIRS = {
    **{
        f"conv{i}.{ours}": f"theta.conv{i}_{theirs}"
        for i in "1234"
        for ours, theirs in (("weight", "w"), ("bias", "b"))
    },
    **{f"norm{i}.bias": f"conv{i}_bn.beta" for i in "1234"},
    **{f"meta.meta_dropout.gates.conv{i}.phi.0.weight": f"phi.conv{i}_w" for i in "1234"},
    **{f"meta.meta_dropout.gates.conv{i}.phi.0.bias": f"phi.conb{i}_b" for i in "1234"},
    "head.weight": "theta.dense_w",
    "head.bias": "theta.dense_b",
    "meta.meta_dropout.logits.phi.weight": "phi.dense_w",
    "meta.meta_dropout.logits.phi.bias": "phi.dense_b",
}
LETTERS = {
    **{f"W{i}": f"theta.conv{i}_w" for i in "1234"},
    **{f"b{i}": f"theta.conv{i}_b" for i in "1234"},
    **{f"V{i}": f"phi.conv{i}_w" for i in "1234"},
    **{f"c{i}": f"phi.conb{i}_b" for i in "1234"},
    **{f"beta{i}": f"conv{i}_bn.beta" for i in "1234"},
    "U": "theta.dense_w",
    "d": "theta.dense_b",
}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN, allow_pickle=False) as file:
        return dict(file)


def ours(array: np.ndarray) -> Tensor:
    """Return TensorFlow's weights in torch's layout, in float64."""
    tensor = torch.from_numpy(array).double()
    return {4: lambda t: t.permute(3, 2, 0, 1), 2: torch.t}.get(tensor.ndim, lambda t: t)(
        tensor
    ).contiguous()


def episode(golden: dict[str, np.ndarray]) -> tuple[Batch, Batch]:
    support, query = (
        Batch(
            torch.from_numpy(golden[f"x{part}"]).double().permute(0, 3, 1, 2),
            torch.from_numpy(golden[f"y{part}"]),
        )
        for part in ("tr", "te")
    )
    return support, query


def network(golden: dict[str, np.ndarray]) -> nn.Module:
    model = Conv4(num_classes=5, in_chans=1, img_size=28, channels=64)
    attach(model, torch.zeros(2, 1, 28, 28))
    model = model.double()
    names = [name for name, _ in model.named_parameters()]
    assert sorted(names) == sorted(THEIRS)  # none is left at its own initial value
    model.load_state_dict(
        {name: ours(golden[f"w:{theirs}:0"]) for name, theirs in THEIRS.items()}, strict=True
    )
    return model


def test_loss_and_every_gradient_equal_the_authors(golden):
    model = network(golden)
    support, query = episode(golden)
    loss, logits = task_loss(model, plan_for(model, 0.1), support, query, InnerLoop(steps=2))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(golden["cent"]), rel=1e-5)
    assert float((logits.argmax(1) == query.targets).double().mean()) == pytest.approx(
        float(golden["acc"])
    )
    seen = 0
    for name, parameter in model.named_parameters():
        key = f"g:{THEIRS[name]}:0"
        if key not in golden:  # noise on the logits is not drawn here
            assert parameter.grad is None
            continue
        wanted = ours(golden[key])
        torch.testing.assert_close(
            parameter.grad, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max())
        )
        seen += 1
    assert seen == 22


def test_the_twin_in_the_papers_letters_equals_the_authors(golden):
    w = {
        letter: ours(golden[f"w:{theirs}:0"]).requires_grad_() for letter, theirs in LETTERS.items()
    }
    support, query = episode(golden)
    adapted = adapt(w, support, steps=2, alpha=0.1)
    loss = F.cross_entropy(forward(adapted, query.inputs), query.targets)
    assert float(loss.detach()) == pytest.approx(float(golden["cent"]), rel=1e-5)
    gradients = torch.autograd.grad(loss, list(w.values()))
    for (letter, theirs), gradient in zip(LETTERS.items(), gradients, strict=True):
        wanted = ours(golden[f"g:{theirs}:0"])
        torch.testing.assert_close(
            gradient, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()), msg=letter
        )
