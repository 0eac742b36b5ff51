"""Run a model without leaving a trace in it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


@contextmanager
def preserve(*modules: nn.Module, generators: Iterable[torch.Generator] = ()) -> Iterator[None]:
    """Undo, on leaving, what a forward and backward pass does to ``modules`` and to torch's random
    numbers.

    Restored bit for bit, also when the block raises: every buffer (batch-norm statistics and their
    counters), the training flags, torch's global random state on the CPU and on the modules' own
    devices, and the state of ``generators``. Blocks entered one after the other therefore see the
    same buffers and draw the same dropout masks.

    Not restored: parameters and their ``.grad`` (use :func:`torch.autograd.grad`, which leaves both
    alone), Python attributes of modules, and the random states of ``random`` and numpy.
    """
    unique = list(dict.fromkeys(chain.from_iterable(m.modules() for m in modules)))
    training = [(m, m.training) for m in unique]
    # Each dictionary is copied too, because a module may replace a buffer instead of writing into
    # it.
    buffers = [(m, dict(m._buffers)) for m in unique]
    values = [
        (b, b.detach().clone()) for _, held in buffers for b in held.values() if b is not None
    ]
    streams = [(g, g.get_state()) for g in generators]
    with ExitStack() as stack:
        _fork_rng(stack, unique)
        try:
            yield
        finally:
            for module, held in buffers:
                module._buffers.clear()
                module._buffers.update(held)
            with torch.no_grad():
                for buffer, value in values:
                    buffer.copy_(value)
            for module, flag in training:
                module.training = flag
            for generator, state in streams:
                generator.set_state(state)


def _fork_rng(stack: ExitStack, modules: list[nn.Module]) -> None:
    indices: dict[str, set[int]] = defaultdict(set)
    for tensor in _tensors(modules):
        if tensor.device.type not in ("cpu", "meta"):
            indices[tensor.device.type].add(tensor.device.index or 0)
    stack.enter_context(torch.random.fork_rng(devices=[]))
    for kind, devices in indices.items():
        stack.enter_context(torch.random.fork_rng(devices=sorted(devices), device_type=kind))


def _tensors(modules: list[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        for tensor in chain(module._parameters.values(), module._buffers.values()):
            if tensor is not None:
                yield tensor
