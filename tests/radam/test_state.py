"""What an optimizer remembers: per-parameter steps, state dicts, copies, groups."""

import copy
import io
import pickle

import pytest
import torch
from trainkit_plugins.radam import Adam2k, AdamEps, AdamWarmup, RAdam

BUILD = {
    "sgd": lambda p: RAdam(p, lr=0.05, weight_decay=0.1),
    "skip": lambda p: RAdam(p, lr=0.05, weight_decay=0.1, unrectified="skip"),
    "warmup": lambda p: AdamWarmup(p, lr=0.05, warmup_steps=6),
    "2k": lambda p: Adam2k(p, lr=0.05, freeze_steps=5),
    "eps": lambda p: AdamEps(p, lr=0.05),
}


def gradients(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, 6, generator=generator, dtype=torch.float64)


def parameter(value=1.0):
    return torch.nn.Parameter(torch.full((6,), value, dtype=torch.float64))


def take(optimizer, theta, some):
    for gradient in some:
        theta.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("stop", [1, 4, 5, 6, 7])
@pytest.mark.parametrize("method", BUILD)
def test_saving_and_loading_continues_identically(method, stop):
    all_gradients = gradients(12)
    straight = parameter()
    take(BUILD[method]([straight]), straight, all_gradients)

    first = parameter()
    optimizer = BUILD[method]([first])
    take(optimizer, first, all_gradients[:stop])
    file = io.BytesIO()
    torch.save({"theta": first.detach(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    second = torch.nn.Parameter(saved["theta"])
    resumed = BUILD[method]([second])
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    take(resumed, second, all_gradients[stop:])
    assert torch.equal(second, straight)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_continue_identically(duplicate):
    theta = parameter()
    optimizer = BUILD["skip"]([theta])
    take(optimizer, theta, gradients(5))
    twin = duplicate(optimizer)
    take(optimizer, theta, gradients(4, seed=1))
    twin_theta = twin.param_groups[0]["params"][0]
    assert not torch.equal(twin_theta, theta)
    take(twin, twin_theta, gradients(4, seed=1))
    assert torch.equal(twin_theta, theta)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda p, **s: torch.optim.RAdam(p, decoupled_weight_decay=True, **s), RAdam),
        (torch.optim.AdamW, lambda p, **s: AdamWarmup(p, warmup_steps=0, **s)),
        (
            lambda p, **s: torch.optim.AdamW(p, fused=True, **s),
            lambda p, **s: AdamWarmup(p, warmup_steps=0, **s),
        ),
    ],
    ids=["RAdam", "AdamW", "fused AdamW"],
)
def test_a_checkpoint_of_torch_continues_here_and_back(theirs, ours, fused):
    """The state has the same names and meaning. eps is 0 because torch's AdamW has it in another
    place.
    """
    all_gradients = gradients(30)
    settings = {"lr": 0.05, "weight_decay": 0.1, "eps": 0.0}
    straight = parameter()
    take(theirs([straight], **settings), straight, all_gradients)

    theta = parameter()
    optimizer = theirs([theta], **settings)
    take(optimizer, theta, all_gradients[:10])
    here = ours([theta], fused=fused)
    here.load_state_dict(optimizer.state_dict())
    take(here, theta, all_gradients[10:20])
    assert here.state[theta]["step"] == 20
    back = theirs([theta])
    back.load_state_dict(here.state_dict())
    take(back, theta, all_gradients[20:])
    torch.testing.assert_close(theta, straight, rtol=0, atol=1e-13)


def test_amsgrad_state_is_refused():
    theta = parameter()
    adam = torch.optim.AdamW([theta], amsgrad=True)
    take(adam, theta, gradients(1))
    with pytest.raises(ValueError, match="amsgrad=True"):
        RAdam([theta]).load_state_dict(adam.state_dict())


def test_loaded_moments_take_the_layout_of_their_parameter():
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    theta = torch.nn.Parameter(weight)
    optimizer = RAdam([theta])
    theta.grad = torch.ones_like(theta)
    optimizer.step()
    moved = torch.nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
    loaded = RAdam([moved])
    loaded.load_state_dict(optimizer.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        assert loaded.state[moved][name].stride() == moved.stride()
        assert torch.equal(loaded.state[moved][name], optimizer.state[theta][name])


@pytest.mark.parametrize("method", BUILD)
def test_a_late_parameter_starts_its_own_count(method):
    """A parameter that joins at step 9 moves exactly as one that was there from the start."""
    early, late = parameter(), parameter()
    optimizer = BUILD[method]([early, late])
    all_gradients = gradients(20)
    for step, gradient in enumerate(all_gradients):
        early.grad = gradient.clone()
        late.grad = gradients(11, seed=1)[step - 9].clone() if step >= 9 else None
        optimizer.step()
    alone = parameter()
    take(BUILD[method]([alone]), alone, gradients(11, seed=1))
    assert torch.equal(late, alone)
    assert (optimizer.state[early]["step"], optimizer.state[late]["step"]) == (20, 11)


def test_groups_move_by_their_own_settings():
    """Two groups that differ in lr by 100: what sharing a cached step size between groups gets
    wrong.
    """
    slow, fast, odd = parameter(0.0), parameter(0.0), parameter(0.0)
    optimizer = RAdam(
        [
            {"params": [slow], "lr": 1e-3},
            {"params": [fast], "lr": 1e-1},
            {
                "params": [odd],
                "betas": (0.5, 0.9),
                "eps": 1e-3,
                "unrectified": "skip",
                "weight_decay": 0.1,
            },
        ],
        lr=0.05,
    )
    for gradient in gradients(10):
        slow.grad, fast.grad, odd.grad = gradient.clone(), gradient.clone(), gradient.clone()
        optimizer.step()
    torch.testing.assert_close(fast.detach(), 100 * slow.detach(), rtol=1e-12, atol=0)
    alone = parameter(0.0)
    take(
        RAdam([alone], 0.05, (0.5, 0.9), 1e-3, 0.1, unrectified="skip"),
        alone,
        gradients(10),
    )
    assert torch.equal(odd, alone)


def test_a_scheduler_drives_the_learning_rate():
    theta = parameter(0.0)
    optimizer = RAdam([theta], lr=1.0, betas=(0.0, 0.9), eps=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 8 else 0.0)
    take_one = torch.ones(1, 6, dtype=torch.float64)
    for _ in range(8):
        take(optimizer, theta, take_one)
        scheduler.step()
    rested = theta.detach().clone()
    take(optimizer, theta, take_one)
    assert torch.equal(theta, rested)
    assert optimizer.state[theta]["step"] == 9


def test_maximize_climbs():
    down, up = parameter(0.0), parameter(0.0)
    take(RAdam([down], weight_decay=0.1), down, gradients(12))
    take(RAdam([up], weight_decay=0.1, maximize=True), up, gradients(12))
    torch.testing.assert_close(up.detach(), -down.detach(), rtol=1e-12, atol=0)


def test_complex_parameters_are_pairs_of_real_ones():
    pairs = torch.randn(12, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.nn.Parameter(torch.zeros(5, dtype=torch.complex128))
    x = torch.nn.Parameter(torch.zeros(5, 2, dtype=torch.float64))
    # A lazily conjugated gradient, as autograd hands out: its memory holds the conjugate of its
    # values.
    lazy = torch.view_as_complex(pairs).conj_physical().conj()
    assert lazy.is_conj()
    for theta, some in ((z, lazy), (x, pairs)):
        optimizer = RAdam([theta], lr=0.1, weight_decay=0.1)
        for gradient in some:
            theta.grad = gradient
            optimizer.step()
    torch.testing.assert_close(torch.view_as_real(z.detach()), x.detach(), rtol=0, atol=1e-15)


def test_a_closure_is_evaluated_with_gradients():
    theta = parameter()
    optimizer = RAdam([theta], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = theta.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(30)]
    assert losses[0] == 6.0
    assert losses[-1] < losses[0]


def test_grad_scaler_skips_a_step_with_an_infinite_gradient():
    """The scaler unscales and decides; a skipped step does not count towards the rectification."""
    theta = torch.nn.Parameter(torch.ones(6))
    optimizer = RAdam([theta], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for gradient in (torch.ones(6), torch.full((6,), torch.inf), torch.ones(6)):
        optimizer.zero_grad()
        scaler.scale((theta * gradient).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.state[theta]["step"] == 2
    plain = torch.nn.Parameter(torch.ones(6))
    take(RAdam([plain], lr=0.1), plain, torch.ones(2, 6))
    torch.testing.assert_close(theta, plain)


def test_named_parameters_keep_their_names():
    model = torch.nn.Linear(2, 1)
    optimizer = RAdam(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_compiled_steps_equal_plain_ones():
    theta, other = parameter(), parameter()
    optimizer, plain = RAdam([theta], lr=0.1), RAdam([other], lr=0.1)
    step = torch.compile(lambda: optimizer.step(), backend="aot_eager")
    for gradient in gradients(8):
        theta.grad, other.grad = gradient.clone(), gradient.clone()
        step()
        plain.step()
    assert torch.equal(theta, other)
