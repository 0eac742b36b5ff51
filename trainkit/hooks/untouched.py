"""What a run is put back to after somebody has only looked at it, by evaluating its loss again,
say.

A loss is more than a number: batch norms count what they see, dropout draws, plugins collect what
they will log. Whoever evaluates it for his own purpose does so inside `Run.untouched()`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from trainkit.seeds import rng_state, set_rng_state

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainkit.hooks.run import Run

Undo = Callable[[], object]


@contextmanager
def untouched(run: Run) -> Iterator[None]:
    """Undo on leaving, also when the block raises, what calls of the run's hooks in it have
    changed.

    Put back, bit for bit and in the same objects: the model's buffers, training flags and other
    attributes; `.grad` (None at first inside); Python's, NumPy's and torch's random streams; each
    plugin's private state with its random streams; the run's own fields. Values and notes logged
    inside are dropped.

    Of a plugin's state these are followed: containers, tensors, modules, generators, and objects
    whose class comes with the plugin. Not put back: parameters of the model and the optimizer's
    state (move them yourself), files, and objects of other libraries.
    """
    undo = _remember(run)
    run.log = type(run.log)()
    try:
        yield
    finally:
        undo()


def _remember(run: Run) -> Undo:
    """Return a function that puts everything of `run` back to what it is now."""
    fields = dict(vars(run))
    streams = rng_state(run.device.torch)
    model: nn.Module | None = fields.get("model")
    parameters = []
    if model is not None:
        parameters = list(model.parameters())
    gradients = [(p, p.grad) for p in parameters]
    for p in parameters:
        p.grad = None
    memory = _Memory(parameters)
    if model is not None:
        memory.keep(model)
    for plugin in run.plugins.values():
        memory.own = type(plugin).__module__.partition(".")[0]
        memory.keep(getattr(plugin, "__pydantic_private__", None))

    def undo() -> None:
        memory.put_back()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        set_rng_state(streams, run.device.torch)
        vars(run).update(fields)

    return undo


class _Memory:
    """The content of objects, however deep, each object once.

    Args:
        left_alone: tensors that are not kept.
    """

    def __init__(self, left_alone: Iterable[Tensor]) -> None:
        from torch import nn

        # What every module has, and forward passes leave alone: its parts and its hooks.
        self._fixed = vars(nn.Module()).keys() - {"training", "_buffers"}
        self.own = ""
        """The package whose objects are followed."""
        self._seen: dict[int, Any] = {
            id(tensor): tensor for tensor in left_alone
        }  # alive, so that ids stay theirs
        self._undo: list[Undo] = []

    def put_back(self) -> None:
        """Give every object the content that it had."""
        for undo in reversed(self._undo):
            undo()

    def keep(self, value: Any) -> None:
        """Remember what `value` and everything in it holds."""
        import numpy as np
        import torch
        from torch import nn

        if value is None or isinstance(value, int | float | str | bytes) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, torch.Tensor):
            self._tensor(value)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, dict):
            self._container(value, dict(value), value.update, value.values())
        elif isinstance(value, list | deque):
            self._container(value, list(value), value.extend, value)
        elif isinstance(value, set):
            self._container(value, set(value), value.update, ())
        elif isinstance(value, tuple):
            self._all(value)
        elif isinstance(value, torch.Generator):
            self._state(value.get_state(), value.set_state)
        elif isinstance(value, random.Random):
            self._state(value.getstate(), value.setstate)
        elif isinstance(value, np.random.Generator):
            self._state(
                value.bit_generator.state, lambda s: setattr(value.bit_generator, "state", s)
            )
        elif type(value).__module__.partition(".")[0] == self.own and hasattr(value, "__dict__"):
            self.keep(vars(value))

    def _all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.keep(value)

    def _container(
        self, value: Any, content: Any, fill: Callable[[Any], object], inside: Iterable[Any]
    ) -> None:
        def undo() -> None:
            value.clear()
            fill(content)

        self._undo.append(undo)
        self._all(inside)

    def _state(self, state: Any, put: Callable[[Any], object]) -> None:
        self._undo.append(lambda: put(state))

    def _tensor(self, value: Tensor) -> None:
        kept = value.detach().clone()
        # By way of `.data`: a graph from before the block, which may hold the tensor, finds what it
        # saved.
        self._undo.append(lambda: value.data.copy_(kept))

    def _module(self, module: nn.Module) -> None:
        for part in module.modules():
            self._seen[id(part)] = part
            attributes = vars(part)
            kept = {}
            for name, value in attributes.items():
                if name not in self._fixed:
                    kept[name] = value
            self._undo.append(partial(self._restore, attributes, kept))
            self._all(kept.values())
            self._all(part._parameters.values())

    def _restore(self, attributes: dict[str, Any], kept: dict[str, Any]) -> None:
        for name in attributes.keys() - kept.keys() - self._fixed:
            del attributes[name]
        attributes.update(kept)
