"""The tensors of a model that an average is kept of, and how they trade places with it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Values(nn.Module):
    """A model's parameters, and its floating buffers where wanted, as a module of their own.

    It holds the model's very tensors, not copies. A deep copy of it therefore copies values and
    nothing else: no hooks, no compiled code, no wrappers; and going through it costs no walk over
    the model's layers.

    Args:
        model: parameters of any dtype; shared ones count once.
        buffers: include floating buffers (running statistics) too. Counters never are: their mean
            means nothing.
    """

    def __init__(self, model: nn.Module, buffers: bool) -> None:
        super().__init__()
        self.names: list[str] = []
        for name, parameter in model.named_parameters():
            self.register_parameter(f"parameter_{len(self.names)}", parameter)
            self.names.append(name)
        for name, buffer in model.named_buffers() if buffers else ():
            if buffer.is_floating_point():
                self.register_buffer(f"buffer_{len(self.names)}", buffer)
                self.names.append(name)

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors in the order of `names`."""
        yield from self.parameters()
        yield from self.buffers()

    def holds(self, model: nn.Module) -> bool:
        """Say whether `model` still has these very tensors."""
        now = dict([*model.named_parameters(), *model.named_buffers()])
        return all(
            now.get(name) is tensor for name, tensor in zip(self.names, self.tensors(), strict=True)
        )

    def export(self) -> dict[str, Tensor]:
        """Return a copy of every tensor by the name that it has in the model."""
        return {
            name: t.detach().clone() for name, t in zip(self.names, self.tensors(), strict=True)
        }

    @torch.no_grad()
    def restore(self, values: dict[str, Tensor]) -> None:
        """Put back what `export` returned, from any device.

        Raises:
            ValueError: the names or shapes are not those of the model.
        """
        shapes = {name: t.shape for name, t in zip(self.names, self.tensors(), strict=True)}
        wrong = sorted(name for name in shapes.keys() ^ values.keys())
        wrong += [
            name for name in shapes.keys() & values.keys() if values[name].shape != shapes[name]
        ]
        if wrong:
            raise ValueError(
                f"the saved average is of another model (or of other buffers): {len(wrong)} of "
                f"{len(shapes)} tensors do not match, such as {wrong[0]}; resume with the recipe "
                "it was saved under"
            )
        for name, tensor in zip(self.names, self.tensors(), strict=True):
            tensor.copy_(values[name])


@torch.no_grad()
def exchange(first: Values, second: Values) -> None:
    """Swap the values of two `Values` of the same model, in place, tensor by tensor; twice is bit
    for bit nothing.

    Values are copied rather than storages swapped, because optimizers, DDP's buckets, compiled code
    and CUDA graphs may all know a parameter by its address. Needs the memory of the largest tensor
    once more.
    """
    for a, b in zip(first.tensors(), second.tensors(), strict=True):
        kept = a.detach().clone()
        a.copy_(b)
        b.copy_(kept)
