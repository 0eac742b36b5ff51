"""The converted layer: torch's own where it must be, and at home wherever a BatchNorm is."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm, freeze_batch_norm_2d
from timm.utils import ModelEmaV3
from torch import nn
from trainkit_plugins.batch_norm import (
    convert_batch_norm,
    converted_layers,
    is_converted,
    revert_batch_norm,
)

C = 6
KINDS = {
    "1d": (nn.BatchNorm1d, ()),
    "1d with length": (nn.BatchNorm1d, (5,)),
    "2d": (nn.BatchNorm2d, (4, 4)),
    "3d": (nn.BatchNorm3d, (2, 3, 3)),
    "act": (BatchNormAct2d, (4, 4)),
}
SETTINGS = {
    "usual": {},
    "cumulative": {"momentum": None},
    "no statistics": {"track_running_stats": False},
    "not affine": {"affine": False},
    "eps": {"eps": 1e-3, "momentum": 0.01},
}


def make(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def twins(kind, **options):
    """Return a layer with random parameters, its converted copy, and a function that makes
    batches for both.
    """
    cls, space = KINDS[kind]
    plain = cls(C, **options)
    with torch.no_grad():
        for p in plain.parameters():
            p.copy_(make(*p.shape, seed=p.numel()))
    return plain, copy.deepcopy(plain), lambda n, seed=0: make(n, C, *space, seed=seed)


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("last", [False, True])
def test_one_block_is_the_plain_layer_bit_for_bit(kind, options, last):
    plain, ours, batch = twins(kind, **options)
    convert_batch_norm(ours, ghost_size=8, channel_groups=C, example_weight=0.0)
    for seed, n in enumerate((8, 5, 8)):
        x = batch(n, seed)
        if last and x.dim() == 4:
            x = x.to(memory_format=torch.channels_last)
        pair = [x.clone().requires_grad_() for _ in range(2)]
        y, z = plain(pair[0]), ours(pair[1])
        assert torch.equal(y, z)
        assert y.stride() == z.stride()
        for out in (y, z):
            (out * batch(n, 9)).sum().backward()
        assert torch.equal(pair[0].grad, pair[1].grad)
    for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert_same_bits(plain.state_dict(), ours.state_dict())
    few = batch(1) if plain.track_running_stats else batch(2)  # without statistics torch needs two
    assert torch.equal(plain.eval()(few), ours.eval()(few))
    assert torch.equal(plain.train()(batch(0)), ours.train()(batch(0)))
    assert_same_bits(plain.state_dict(), ours.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_block_is_the_plain_layer_in_half_precision(dtype):
    for whole in (True, False):
        plain, ours, batch = twins("2d")
        convert_batch_norm(ours, ghost_size=8)
        if whole:
            plain, ours = plain.to(dtype), ours.to(dtype)
        x = batch(8).to(dtype)
        assert torch.equal(plain(x), ours(x))
        assert_same_bits(plain.state_dict(), ours.state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_blocks_train_and_evaluate_in_every_kind(kind, options):
    plain, ours, batch = twins(kind, **options)
    convert_batch_norm(ours, ghost_size=4, blocks="consecutive")
    x = batch(8)
    chunked = torch.cat([copy.deepcopy(plain)(c) for c in x.split(4)])
    torch.testing.assert_close(ours(x), chunked)
    if ours.running_mean is not None:
        share = 1.0 if ours.momentum is None else ours.momentum
        others = [d for d in range(x.dim()) if d != 1]
        torch.testing.assert_close(ours.running_mean, share * x.mean(others))
        assert ours.num_batches_tracked == 1
    plain.load_state_dict(ours.state_dict())
    if options.get("track_running_stats", True):
        assert torch.equal(plain.eval()(batch(3)), ours.eval()(batch(3)))
    else:
        torch.testing.assert_close(ours.eval()(x), chunked)


def test_the_activation_and_the_drop_of_a_norm_act_stay():
    layer = BatchNormAct2d(C, act_layer=nn.Hardswish, drop_layer=nn.Dropout)
    act, drop, weight = layer.act, layer.drop, layer.weight
    calls = []
    layer.register_forward_hook(lambda *_: calls.append("hook"))
    layer.drop.register_forward_hook(lambda *_: calls.append("drop"))
    convert_batch_norm(layer, ghost_size=2)
    assert (layer.act, layer.drop, layer.weight) == (act, drop, weight)
    layer.eval()
    x = make(4, C, 3, 3)
    reference = nn.functional.hardswish(nn.BatchNorm2d(C).eval()(x))
    assert torch.equal(layer(x), reference)
    layer.train()(x)
    assert calls == ["drop", "hook", "drop", "hook"]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("how", [{"ghost_size": 2}, {"channel_groups": 2, "example_weight": 0.1}])
def test_half_precision(whole, how):
    _, ours, batch = twins("2d")
    exact = copy.deepcopy(ours)
    for layer in (ours, exact):
        convert_batch_norm(layer, **how)
    if whole:
        ours.to(torch.bfloat16)
        exact.load_state_dict(ours.state_dict())
    x = batch(8).to(torch.bfloat16)
    for _ in range(2):
        y = ours(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), exact(x.float()), rtol=2e-2, atol=2e-2)
        ours.eval(), exact.eval()
    torch.testing.assert_close(ours.running_var.float(), exact.running_var, rtol=1e-2, atol=1e-2)


def test_autocast():
    net = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.ReLU())
    convert_batch_norm(net, ghost_size=2, example_weight=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(make(4, 3, 8, 8))
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
        assert net.eval()(make(1, 3, 8, 8)).isfinite().all()
    assert net[1].running_var.dtype == torch.float32
    assert net[1].weight.grad.dtype == torch.float32


def test_batches_without_a_statistic():
    layer = nn.BatchNorm1d(C)
    convert_batch_norm(layer, ghost_size=1)
    with pytest.raises(ValueError, match="more than 1 value"):
        layer(make(4, C))
    convert_batch_norm(layer, ghost_size=2, channel_groups=2, example_weight=0.5)
    before = copy.deepcopy(layer.state_dict())
    empty = torch.zeros(0, C, requires_grad=True)
    layer(empty).sum().backward()
    assert empty.grad.shape == (0, C)
    assert layer.num_batches_tracked == before["num_batches_tracked"] + 1
    assert torch.equal(layer.running_var, before["running_var"])
    assert layer.eval()(torch.zeros(0, C)).shape == (0, C)
    assert layer(make(1, C)).isfinite().all()
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        layer(make(2, C, 3, 3))


def test_example_weight_without_running_statistics_is_refused():
    layer = nn.BatchNorm2d(C, track_running_stats=False)
    with pytest.raises(ValueError, match="no running statistics"):
        convert_batch_norm(layer, example_weight=0.1)
    assert not is_converted(layer)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles(kind):
    _, ours, batch = twins(kind)
    convert_batch_norm(ours, ghost_size=4, channel_groups=3, blocks="consecutive")
    net = nn.Sequential(ours)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    loaded = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), loaded, copy.copy(net)):
        assert type(other[0]) is type(ours)
        assert (other[0].ghost_size, other[0].channel_groups, other[0].blocks) == (
            4,
            3,
            "consecutive",
        )
        assert torch.equal(other(batch(8)), net(batch(8)))
    revert_batch_norm(loaded)
    assert type(loaded[0]) is KINDS[kind][0]
    weights = io.BytesIO()
    torch.save(net.state_dict(), weights)
    weights.seek(0)
    assert_same_bits(torch.load(weights, weights_only=True), net.state_dict())


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        BatchNormAct2d(8),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(128, 5),
    )


def test_ema():
    net = small_net()
    convert_batch_norm(net, ghost_size=2, example_weight=0.1)
    ema = ModelEmaV3(net, decay=0.5)
    net(make(8, 3, 8, 8)).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    ema.update(net)
    assert list(converted_layers(ema.module)) == ["1", "3"]
    halfway = 0.5 * torch.ones(8) + 0.5 * net[3].running_var
    torch.testing.assert_close(ema.module[3].running_var, halfway)
    averaged = torch.optim.swa_utils.AveragedModel(net)
    averaged.update_parameters(net)
    torch.optim.swa_utils.update_bn([make(8, 3, 8, 8, seed=s) for s in range(3)], averaged)
    assert averaged.module[1].num_batches_tracked == 3


def test_replacing_classes_is_allowed_where_nothing_is_lost_but_blocks():
    net, x = small_net(), make(2, 3, 8, 8)
    convert_batch_norm(net, ghost_size=2)
    net(make(8, 3, 8, 8))
    before = net.eval()(x)
    frozen = freeze_batch_norm_2d(copy.deepcopy(net))
    torch.testing.assert_close(frozen(x), before)
    synced = convert_sync_batchnorm(copy.deepcopy(net))
    assert not converted_layers(synced)  # a SyncBatchNorm knows no blocks
    torch.testing.assert_close(synced.eval()(x), before)


@pytest.mark.parametrize("how", [{"example_weight": 0.1}, {"channel_groups": 2}])
@pytest.mark.parametrize("replace", [convert_sync_batchnorm, freeze_batch_norm_2d])
def test_replacing_classes_is_refused_where_it_would_change_the_model(how, replace):
    net = small_net()
    convert_batch_norm(net, **how)
    with pytest.raises(RuntimeError, match="revert_batch_norm"):
        replace(net)
    revert_batch_norm(net)
    replace(net)


def test_folding_into_a_convolution_by_torch():
    net, x = small_net().eval(), make(2, 3, 8, 8)
    convert_batch_norm(net, ghost_size=2)
    fused = nn.utils.fuse_conv_bn_eval(net[2], net[3])
    h = net[1](net[0](x))
    torch.testing.assert_close(fused(h), net[3](net[2](h)))
    convert_batch_norm(net, example_weight=0.1)
    with pytest.raises(RuntimeError, match=r"example_weight=0\.1"):
        nn.utils.fuse_conv_bn_eval(net[2], net[3])


def test_the_layer_says_what_it_is():
    net = small_net()
    convert_batch_norm(net, ghost_size=4, example_weight=0.1)
    line = repr(net[3])
    assert line.startswith("GeneralizedBatchNorm2d(8, eps=1e-05")
    assert "ghost_size=4, channel_groups=None, example_weight=0.1, blocks=any" in line
