"""Fused kernel, tensor lists and single tensors give the same numbers, for any mix of shapes and
settings.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainkit_plugins.radam import Adam2k, AdamEps, AdamWarmup, RAdam, base, updates

BUILD = {
    "sgd": lambda p, **s: RAdam(p, **s),
    "skip": lambda p, **s: RAdam(p, unrectified="skip", **s),
    "warmup": lambda p, **s: AdamWarmup(p, warmup_steps=4, **s),
    "2k": lambda p, **s: Adam2k(p, freeze_steps=3, **s),
    "eps": lambda p, **s: AdamEps(p, **s),
}
# A few roundings of the dtype: the kernels contract differently, and m and v are stored rounded.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 3e-6,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
    torch.complex128: 1e-13,
    torch.complex64: 3e-6,
}
PATHS = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "single": {"foreach": False},
    "auto": {},
}


def run(method, path, shapes, dtype, steps, seed, **settings):
    """Return the parameters after some steps on given gradients, one of them without its last
    gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in shapes]
    half = (len(params) + 1) // 2
    groups = [
        {"params": params[:half]},
        {"params": params[half:], "lr": 0.02, "betas": (0.8, 0.95)},
    ]
    optimizer = BUILD[method](
        [g for g in groups if g["params"]], lr=0.01, **settings, **PATHS[path]
    )
    for step in range(steps):
        for i, p in enumerate(params):
            gradient = torch.randn(p.shape, generator=generator, dtype=dtype)
            # The first parameter joins two steps late, so that one group holds two step counts.
            p.grad = None if i == 0 and step < 2 else gradient
        optimizer.step()
    return [p.detach() for p in params]


@settings(deadline=None, max_examples=40)
@given(
    method=st.sampled_from(sorted(BUILD)),
    dtype=st.sampled_from(list(TOLERANCE)),
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=5),
    steps=st.integers(1, 12),
    seed=st.integers(0, 1000),
    weight_decay=st.sampled_from([0.0, 0.1]),
    decoupled=st.booleans(),
    maximize=st.booleans(),
)
def test_paths_agree(method, dtype, shapes, steps, seed, weight_decay, decoupled, maximize):
    options = {
        "weight_decay": weight_decay,
        "decoupled_weight_decay": decoupled,
        "maximize": maximize,
        "eps": 1e-4,
    }
    want = run(method, "single", shapes, dtype, steps, seed, **options)
    for path in ("fused", "foreach", "auto"):
        got = run(method, path, shapes, dtype, steps, seed, **options)
        torch.testing.assert_close(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def spied(monkeypatch):
    """Count the parameters that each path moves."""
    moved = {"fused": 0, "foreach": 0, "single": 0}
    for name in moved:
        original = getattr(updates, f"{name}_step")

        def spy(tensors, update, hyper, name=name, original=original):
            moved[name] += len(tensors.thetas)
            original(tensors, update, hyper)

        monkeypatch.setattr(base, f"{name}_step", spy)
    return moved


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ({}, "fused"),
        ({"fused": True}, "fused"),
        ({"fused": False}, "single"),
        ({"foreach": True}, "foreach"),
        ({"foreach": False}, "single"),
    ],
)
def test_settings_choose_the_path(monkeypatch, path, taken):
    moved = spied(monkeypatch)
    theta = torch.nn.Parameter(torch.zeros(3))
    theta.grad = torch.ones(3)
    AdamEps([theta], **path).step()
    assert moved == {"fused": 0, "foreach": 0, "single": 0} | {taken: 1}


def test_one_kernel_call_for_all_parameters_with_the_same_step_count(monkeypatch):
    calls = []
    original = torch._fused_adamw_

    def spy(params, *rest, **named):
        calls.append(len(params))
        original(params, *rest, **named)

    monkeypatch.setattr(torch, "_fused_adamw_", spy)
    params = [torch.nn.Parameter(torch.zeros(n)) for n in (1, 2, 3)]
    optimizer = RAdam(params)
    for step in range(9):
        for i, p in enumerate(params):
            p.grad = torch.ones_like(p) if i < 2 or step >= 2 else None
        optimizer.step()
    # Steps 6 and 7 of the first two; from their step 8 on, the late one takes its own step 6 and 7.
    assert calls == [2, 2, 2, 1, 2, 1]


@pytest.mark.parametrize(
    "case", ["channels_last gradient", "transposed gradient", "channels_last", "strided theta"]
)
def test_layouts_do_not_change_the_numbers(case):
    def build(shuffled):
        generator = torch.Generator().manual_seed(0)
        theta = torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64)
        gradients = torch.randn(9, 4, 3, 5, 5, generator=generator, dtype=torch.float64)
        if shuffled and case == "channels_last":
            theta = theta.contiguous(memory_format=torch.channels_last)
        if shuffled and case == "strided theta":
            theta = torch.cat([theta, theta], dim=1)[:, :3]
        theta = theta.requires_grad_()
        optimizer = RAdam([theta], lr=0.1, weight_decay=0.1)
        for g in gradients:
            if shuffled and case.startswith("channels_last"):
                g = g.contiguous(memory_format=torch.channels_last)
            if shuffled and case == "transposed gradient":
                g = g.transpose(2, 3).contiguous().transpose(2, 3)
            theta.grad = g
            optimizer.step()
        return theta.detach()

    torch.testing.assert_close(build(True), build(False), rtol=0, atol=1e-14)


def test_a_half_precision_step_rounds_once():
    """bfloat16 parameters take the float32 step of bfloat16 inputs, rounded at the end, on every
    path.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1000, generator=generator).bfloat16()
    gradient = torch.randn(1000, generator=generator).bfloat16()
    exact = torch.nn.Parameter(start.float())
    exact.grad = gradient.float()
    AdamEps([exact], lr=0.1).step()
    for path in PATHS.values():
        theta = torch.nn.Parameter(start.clone())
        theta.grad = gradient.clone()
        AdamEps([theta], lr=0.1, **path).step()
        assert torch.equal(theta.detach(), exact.detach().bfloat16())


def test_moments_of_another_dtype_advance():
    """As after `model.double()` in mid-training: the moments stay float32, and it is them that
    move.
    """
    theta = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = AdamEps([theta], lr=0.1)
    state = {"step": 0, "exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(4)}
    optimizer.state[theta].update(state)
    theta.grad = torch.ones(4, dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(state["exp_avg"], torch.full((4,), 0.1))
    torch.testing.assert_close(state["exp_avg_sq"], torch.full((4,), 0.001))
    torch.testing.assert_close(
        theta.detach(), torch.full((4,), -0.1 / (1 + 1e-4 / 0.001**0.5), dtype=torch.float64)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestCuda:
    @pytest.mark.parametrize("method", sorted(BUILD))
    @pytest.mark.parametrize("path", sorted(PATHS))
    def test_the_device_gives_the_numbers_of_the_cpu(self, method, path):
        results = []
        for device in ("cpu", "cuda"):
            generator = torch.Generator().manual_seed(0)
            theta = torch.randn(50, generator=generator).to(device).requires_grad_()
            optimizer = BUILD[method]([theta], lr=0.01, weight_decay=0.1, **PATHS[path])
            for _ in range(20):
                theta.grad = torch.randn(50, generator=generator).to(device)
                optimizer.step()
            results.append(theta.detach().cpu())
        torch.testing.assert_close(results[0], results[1], rtol=3e-6, atol=3e-6)

    def test_no_step_waits_for_the_device(self):
        theta = torch.zeros(50, device="cuda", requires_grad=True)
        optimizer = RAdam([theta])
        theta.grad = torch.ones_like(theta)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(8):
                optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_graph_capture_is_refused(self):
        theta = torch.zeros(50, device="cuda", requires_grad=True)
        theta.grad = torch.ones_like(theta)
        optimizer = RAdam([theta])
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(RuntimeError, match="cannot be captured"), torch.cuda.graph(graph):
            optimizer.step()
