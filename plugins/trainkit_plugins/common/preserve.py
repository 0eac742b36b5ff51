"""Run a model without leaving a trace in it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def kept_modes(*modules: nn.Module) -> Iterator[None]:
    """Put the training flags of all modules inside ``modules`` back on leaving."""
    flags = [(m, m.training) for module in modules for m in module.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def measuring_statistics(model: nn.Module, layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let ``layers`` alone train: dropout is off, nothing draws. Modes and momenta come back."""
    momenta = [layer.momentum for layer in layers]
    with kept_modes(model):
        try:
            model.eval()
            for layer in layers:
                layer.train()
            yield
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum


@contextmanager
def preserve(*modules: nn.Module, generators: Iterable[torch.Generator] = ()) -> Iterator[None]:
    """Undo what forward and backward passes do to ``modules`` and to torch's random numbers.

    Restored bit for bit, also when the block raises: every buffer, the training flags, torch's
    random state on the CPU and the modules' devices, and that of ``generators``. Blocks entered one
    after the other see the same buffers and draw the same dropout masks.

    Not restored: parameters and their ``.grad`` (use :func:`torch.autograd.grad`, which leaves both
    alone), Python attributes of modules, the streams of ``random`` and numpy.
    """
    unique = list(dict.fromkeys(chain.from_iterable(m.modules() for m in modules)))
    buffers = [(m, dict(m._buffers)) for m in unique]  # a module may replace a buffer
    held = [b for _, named in buffers for b in named.values() if b is not None]
    values = [(b, b.detach().clone()) for b in held]
    streams = [(g, g.get_state()) for g in generators]
    with forked_streams(*modules), kept_modes(*modules):
        try:
            yield
        finally:
            for module, named in buffers:
                module._buffers.clear()
                module._buffers.update(named)
            with torch.no_grad():
                for buffer, value in values:
                    buffer.copy_(value)
            for generator, state in streams:
                generator.set_state(state)


@contextmanager
def forked_streams(*modules: nn.Module) -> Iterator[None]:
    """Put torch's random state back on leaving, on the CPU and on the devices of ``modules``."""
    devices: dict[str, set[int]] = defaultdict(set)
    for tensor in chain.from_iterable(chain(m.parameters(), m.buffers()) for m in modules):
        if tensor.device.type not in ("cpu", "meta"):
            devices[tensor.device.type].add(tensor.device.index or 0)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind, found in devices.items():
            stack.enter_context(torch.random.fork_rng(sorted(found), device_type=kind))
        yield
