"""One meta-step of second-order MAML, as each library writes it: for `benchmarks/maml.py`.

learn2learn 0.2.0 does not install on Python 3.11, for which its C files must be generated anew:

    pip install "cython<3" "setuptools<60" wheel requests gym tqdm
    pip download --no-deps --no-binary :all: --no-build-isolation learn2learn
    tar xf learn2learn-0.2.0.tar.gz && cython -3 learn2learn-0.2.0/learn2learn/data/*.pyx
    pip install --no-deps --no-build-isolation ./learn2learn-0.2.0

Its `MAML` adapts either all parameters or those alone that are not meta-learned, so the loop here,
which leaves norms as they are in the inner loop, is made of the functions that `MAML` is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from trainkit_plugins.maml import Conv4, InnerLoop, Task, Workers, meta_gradient, plan_for

STEPS, LR, WAYS, QUERIES, TASKS = 5, 0.4, 5, 15, 4
PLAIN = "plain loop"


class Examples(NamedTuple):
    """Images and their classes."""

    inputs: Tensor
    targets: Tensor


class ShiftNorm(nn.BatchNorm2d):
    """torch's batch norm with the batch's statistics and no scale."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, track_running_stats=False)
        self.weight = None  # type: ignore[assignment]


class Plain(nn.Module):
    """The network of torch's modules, with the names that conv4 has."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for i, inputs in enumerate((1, channels, channels, channels), 1):
            setattr(self, f"conv{i}", nn.Conv2d(inputs, channels, 3, padding=1))
            setattr(self, f"norm{i}", ShiftNorm(channels))
        self.head = nn.Linear(channels, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, ways]."""
        for i in range(1, 5):
            x = F.max_pool2d(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x)).relu(), 2)
        return self.head(x.flatten(1))


Episode = tuple[Examples, Examples]
Step = Callable[[], Tensor]
"""Computes a meta-step: leaves gradients in the parameters, returns the loss."""


def episodes(shots: int, dtype: torch.dtype) -> list[Episode]:
    """Return the tasks: noise around an image of each class."""
    generator = torch.Generator().manual_seed(1)

    def examples(means: Tensor, each: int) -> Examples:
        targets = torch.arange(WAYS).repeat(each)
        noise = torch.randn(len(targets), 1, 28, 28, generator=generator)
        return Examples((means[targets] + noise).to(dtype), targets)

    found = []
    for _ in range(TASKS):
        means = torch.randn(WAYS, 1, 28, 28, generator=generator)
        found.append((examples(means, shots), examples(means, QUERIES)))
    return found


def plain_loop(model: nn.Module, tasks: list[Episode]) -> Step:
    """Return torch.func.functional_call in a loop, and one backward pass at the end."""

    def run() -> Tensor:
        model.zero_grad()
        total = torch.zeros(())
        for support, query in tasks:
            params = dict(model.named_parameters())
            moved = [name for name in params if "norm" not in name]
            for _ in range(STEPS):
                loss = F.cross_entropy(
                    functional_call(model, params, (support.inputs,)), support.targets
                )
                grads = torch.autograd.grad(
                    loss, [params[name] for name in moved], create_graph=True
                )
                params = params | {n: params[n] - LR * g for n, g in zip(moved, grads, strict=True)}
            total = total + F.cross_entropy(
                functional_call(model, params, (query.inputs,)), query.targets
            )
        (total / TASKS).backward()
        return total.detach() / TASKS

    return run


def vmapped(model: nn.Module, tasks: list[Episode]) -> Step:
    """Return torch.func.vmap over tasks, the gradient of each taken inside."""
    stacked = [
        torch.stack([getattr(part, what) for part in parts])
        for parts in zip(*tasks, strict=True)
        for what in ("inputs", "targets")
    ]

    def inner(moved: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, moved | fixed, (x,)), y)

    def outer(
        moved: dict[str, Tensor],
        fixed: dict[str, Tensor],
        x: Tensor,
        y: Tensor,
        qx: Tensor,
        qy: Tensor,
    ):
        for _ in range(STEPS):
            grads = torch.func.grad(inner)(moved, fixed, x, y)
            moved = {name: p - LR * grads[name] for name, p in moved.items()}
        return inner(moved, fixed, qx, qy)

    def run() -> Tensor:
        named = dict(model.named_parameters())
        moved = {n: p.detach() for n, p in named.items() if "norm" not in n}
        fixed = {n: p.detach() for n, p in named.items() if "norm" in n}
        both = torch.func.vmap(torch.func.grad_and_value(outer, (0, 1)), (None, None, 0, 0, 0, 0))
        grads, losses = both(moved, fixed, *stacked)
        for part in grads:
            for name, grad in part.items():
                named[name].grad = grad.mean(0)
        return losses.mean()

    return run


def higher_loop(model: nn.Module, tasks: list[Episode]) -> Step:
    """Return facebookresearch/higher's loop as its documentation writes it."""
    import higher

    def run() -> Tensor:
        model.zero_grad()
        moved = [p for n, p in model.named_parameters() if "norm" not in n]
        total = torch.zeros(())
        for support, query in tasks:
            optimizer = torch.optim.SGD(moved, lr=LR)
            with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (
                fast,
                differentiable,
            ):
                for _ in range(STEPS):
                    differentiable.step(F.cross_entropy(fast(support.inputs), support.targets))
                loss = F.cross_entropy(fast(query.inputs), query.targets) / TASKS
                loss.backward()
                total += loss.detach()
        return total

    return run


def torchopt_loop(model: nn.Module, tasks: list[Episode]) -> Step:
    """Return TorchOpt's functional optimizer around functional_call."""
    import torchopt

    def run() -> Tensor:
        model.zero_grad()
        total = torch.zeros(())
        for support, query in tasks:
            named = dict(model.named_parameters())
            fixed = {n: p for n, p in named.items() if "norm" in n}
            moved = {n: p for n, p in named.items() if "norm" not in n}
            optimizer = torchopt.FuncOptimizer(torchopt.sgd(lr=LR))
            for _ in range(STEPS):
                loss = F.cross_entropy(
                    functional_call(model, moved | fixed, (support.inputs,)), support.targets
                )
                moved = optimizer.step(loss, moved)
            loss = (
                F.cross_entropy(
                    functional_call(model, moved | fixed, (query.inputs,)), query.targets
                )
                / TASKS
            )
            loss.backward()
            total += loss.detach()
        return total

    return run


def learn2learn_loop(model: nn.Module, tasks: list[Episode]) -> Step:
    """Return learn2learn's clone and update, which are its `MAML`."""
    import learn2learn

    def run() -> Tensor:
        model.zero_grad()
        total = torch.zeros(())
        for support, query in tasks:
            learner = learn2learn.clone_module(model)
            for _ in range(STEPS):
                named = dict(learner.named_parameters())
                moved = [name for name in named if "norm" not in name]
                loss = F.cross_entropy(learner(support.inputs), support.targets)
                found = torch.autograd.grad(
                    loss, [named[name] for name in moved], create_graph=True
                )
                grads = dict(zip(moved, found, strict=True))
                learn2learn.algorithms.maml.maml_update(
                    learner, LR, [grads.get(name) for name in named]
                )
            loss = F.cross_entropy(learner(query.inputs), query.targets) / TASKS
            loss.backward()
            total += loss.detach()
        return total

    return run


def ours(model: nn.Module, tasks: list[Episode], workers: int, second_order: bool = True) -> Step:
    """Return this room's tasks on threads."""
    threads = Workers(model, count=workers)
    named = list(model.parameters())
    loop = InnerLoop(STEPS, second_order)

    def run() -> Tensor:
        plan = plan_for(model, LR)
        found = meta_gradient(threads, [Task(plan, *task) for task in tasks], named, loop)
        for parameter, gradient in zip(named, found.gradients, strict=True):
            parameter.grad = gradient
        return found.loss

    return run


def contenders(
    channels: int, shots: int, threads: int, dtype: torch.dtype = torch.float32
) -> dict[str, tuple[nn.Module, Step]]:
    """Return every contender with its model; all models start alike."""
    torch.manual_seed(0)
    start = Conv4(WAYS, 1, 28, channels).state_dict()
    for tensor in start.values():
        tensor.normal_(std=0.1, generator=torch.Generator().manual_seed(tensor.numel()))
    tasks = episodes(shots, dtype)
    loops: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, list[Episode]], Step]]] = {
        PLAIN: (lambda: Plain(channels), plain_loop),
        "torch.func.vmap": (lambda: Plain(channels), vmapped),
        "plain loop, conv4": (lambda: Conv4(WAYS, 1, 28, channels), plain_loop),
        "trainkit, one task at a time, network as written": (
            lambda: Plain(channels),
            lambda m, t: ours(m, t, 1),
        ),
        f"trainkit, {threads} at a time, network as written": (
            lambda: Plain(channels),
            lambda m, t: ours(m, t, threads),
        ),
        "trainkit, one task at a time, conv4": (
            lambda: Conv4(WAYS, 1, 28, channels),
            lambda m, t: ours(m, t, 1),
        ),
        f"trainkit, {threads} at a time, conv4": (
            lambda: Conv4(WAYS, 1, 28, channels),
            lambda m, t: ours(m, t, threads),
        ),
    }
    if find_spec("higher"):
        loops["higher"] = (lambda: Plain(channels), higher_loop)
    if find_spec("torchopt"):
        loops["TorchOpt"] = (lambda: Plain(channels), torchopt_loop)
    if find_spec("learn2learn"):
        loops["learn2learn"] = (lambda: Plain(channels), learn2learn_loop)
    table = {}
    for name, (make, loop) in loops.items():
        model = make().to(dtype)
        model.load_state_dict(start)
        table[name] = (model, loop(model, tasks))
    return table


def check(shots: int, threads: int) -> None:
    """Refuse contenders that differ from the plain loop in float64."""
    wanted = None
    for name, (model, step) in contenders(8, shots, threads, torch.float64).items():
        loss = step()
        found = torch.cat([p.grad.flatten() for p in model.parameters()])
        wanted = (loss, found) if wanted is None else wanted
        error = ((found - wanted[1]).norm() / wanted[1].norm()).item()
        assert abs(loss - wanted[0]) < 1e-6, f"{name}: loss {loss}"
        assert error < 1e-6, f"{name}: the gradient differs by {error}"
