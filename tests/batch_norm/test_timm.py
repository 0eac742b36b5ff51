"""timm's own models with their BatchNorm layers converted: trained, evaluated, saved, reloaded,
reverted, fused.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from trainkit_plugins.batch_norm import convert_batch_norm, converted_layers, revert_batch_norm

from tests.reference.batch_norm_models import FEW, SMALLEST

ROOT = Path(__file__).parents[2]
MANY = [f for f in SMALLEST if f not in FEW]
FUSING = ("byobnet", "efficientvit_msra", "fastvit", "levit", "repghost")
FUSING_SLOW = ("ghostnet", "iformer", "lcnetv2", "nextvit", "repvit", "shvit", "tiny_vit")

# timm 1.0.31 with torch 2.15
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def create(family, name=None):
    smallest, size, options = SMALLEST[family]
    torch.manual_seed(0)
    return timm.create_model(name or smallest, num_classes=7, **options), size


def norms(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}


def train_a_step(model, x):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 7)
    loss.backward()
    assert loss.isfinite()
    norm = next(iter(norms(model).values()))
    assert norm.weight.grad is not None
    # On maps of 1 x 1 a block of two examples has gradients of 1e5; what follows is not about so
    # large a step.
    assert nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite()
    optimizer.step()


def logits(model, x):
    with torch.no_grad():
        y = model.eval()(x)
    assert y.isfinite().all()
    return y


def check(family):
    model, size = create(family)
    x = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(1))
    types, before = {k: type(m) for k, m in model.named_modules()}, logits(model, x)
    names = convert_batch_norm(model, ghost_size=2)
    assert names == list(norms(model))
    assert torch.equal(logits(model, x), before)
    train_a_step(model, x)
    ours, plain = logits(model, x), create(family)[0]
    plain.load_state_dict(model.state_dict())
    assert torch.equal(logits(plain, x), ours)

    convert_batch_norm(model, example_weight=0.2)
    # Some layers of rexnet have an odd number of channels, which cannot be divided into groups of
    # two.
    convert_batch_norm(
        model, channels_per_group=2, only=lambda name, layer: layer.num_features % 2 == 0
    )
    train_a_step(model, x)
    weighed = logits(model, x)
    torch.testing.assert_close(logits(model, x[:1]), weighed[:1], rtol=1e-3, atol=1e-3)

    assert revert_batch_norm(model) == names
    assert {k: type(m) for k, m in model.named_modules()} == types
    plain.load_state_dict(model.state_dict())
    assert torch.equal(logits(model, x), logits(plain, x))


@pytest.mark.parametrize("family", FEW)
def test_a_model_of_the_family(family):
    check(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", MANY)
def test_a_model_of_every_other_family(family):
    check(family)


def check_fusing(family):
    # The smallest of these families have nothing to fold.
    model, size = create(family, {"byobnet": "repvgg_a0", "ghostnet": "ghostnetv3_050"}.get(family))
    x = torch.randn(2, 3, size, size)
    convert_batch_norm(model, ghost_size=2)
    train_a_step(model, torch.randn(4, 3, size, size))
    expected = logits(model, x)
    fused = reparameterize_model(copy.deepcopy(model))
    assert len(norms(fused)) < len(norms(model))
    torch.testing.assert_close(logits(fused, x), expected, rtol=1e-3, atol=1e-4)
    for field in ({"example_weight": 0.1}, {"example_weight": 0.0, "channels_per_group": 2}):
        convert_batch_norm(model, **field)
        with pytest.raises(RuntimeError, match="revert_batch_norm"):
            reparameterize_model(model)
    revert_batch_norm(model)
    torch.testing.assert_close(
        logits(reparameterize_model(model), x), expected, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("family", FUSING)
def test_fusing_is_right_or_refused(family):
    check_fusing(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", FUSING_SLOW)
def test_fusing_is_right_or_refused_in_every_other_family(family):
    check_fusing(family)


def test_features_traced_by_fx():
    from timm.models import FeatureGraphNet

    model, size = create("resnet")
    convert_batch_norm(model, ghost_size=2, example_weight=0.1)
    x = torch.randn(4, 3, size, size)
    traced = FeatureGraphNet(copy.deepcopy(model), out_indices=(0, 1, 2, 3, 4))
    assert len(converted_layers(traced)) == len(converted_layers(model))
    for mode in (True, False):
        model.train(mode), traced.train(mode)
        torch.testing.assert_close(traced(x)[-1], model.forward_features(x))


def test_symbolic_trace_takes_a_layer_for_a_leaf():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    convert_batch_norm(net, ghost_size=2)
    traced = torch.fx.symbolic_trace(net)
    assert [n.op for n in traced.graph.nodes] == ["placeholder", *["call_module"] * 3, "output"]
    assert list(converted_layers(traced)) == ["1"]
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(traced(x), net(x))


@pytest.mark.slow  # compiling takes seconds
@pytest.mark.parametrize(
    "how", [{"ghost_size": 2}, {"channel_groups": 2, "ghost_size": 3, "blocks": "consecutive"}]
)
def test_compiled_training_is_eager_training(how):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    convert_batch_norm(net, example_weight=0.2, **how)
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for n in (8, 7):
        x = torch.randn(n, 3, 6, 6)
        a, b = compiled(x), twin(x)
        torch.testing.assert_close(a, b)
        a.square().sum().backward(), b.square().sum().backward()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)
    for p, q in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(p, q)
    net.eval(), twin.eval()
    torch.testing.assert_close(compiled(x), twin(x))


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_export(alpha):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    convert_batch_norm(net, ghost_size=2, example_weight=alpha)
    net(torch.randn(8, 3, 6, 6))
    net.eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(net, (torch.randn(4, 3, 6, 6),), dynamic_shapes=({0: batch},))
    x = torch.randn(9, 3, 6, 6)
    torch.testing.assert_close(program.module()(x), net(x))
    calls = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert (calls == ["aten.conv2d.default", "aten.batch_norm.default", "aten.relu.default"]) == (
        alpha == 0
    )


@pytest.mark.slow
def test_two_ranks_keep_the_same_weights(tmp_path):
    run = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
    ]
    script = [str(ROOT / "tests" / "reference" / "batch_norm_ranks.py"), str(tmp_path)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *run, *script],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert first["1.num_batches_tracked"] == 2
    for name, tensor in first.items():
        if "running" not in name:
            assert torch.equal(tensor, second[name]), name
