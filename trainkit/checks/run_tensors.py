"""Finds what is not finite in the tensors of a run, and names it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from trainkit.checks.states import first_bad, not_a_number, unreadable
from trainkit.hooks.run import Run


def owned_by(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters that an optimizer moves, in its order."""
    owned: list[Tensor] = []
    for group in optimizer.param_groups:
        owned += group["params"]
    return owned


class RunTensors:
    """The tensors of one run, of its model and of its states.

    Args:
        run: the run, complete.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        # A constant may well be infinite, as an attention mask is; what is trained may not.
        buffers = dict(run.model.named_buffers())
        some = first_bad(list(buffers.values())) is not None
        self._constants = [name for name, buffer in buffers.items() if some and first_bad([buffer])]

    def first_fault(self, named: Mapping[str, Tensor], verb: str = "holds") -> str | None:
        """Return the first of the model's tensors that is not finite and is no constant, and
        what it holds.
        """
        trained = {}
        for name, t in named.items():
            if name not in self._constants:
                trained[name] = t
        found = first_bad(list(trained.values()))
        if found:
            return f"{self._kind(list(trained)[found[0]])} {verb} {found[1]}"
        return None

    def of_model(self) -> dict[str, Tensor]:
        """Return the parameters and the buffers of the model by name."""
        return dict([*self._run.model.named_parameters(), *self._run.model.named_buffers()])

    def name_of(self, parameter: Tensor) -> str:
        """Return the name of a parameter that the optimizer moves."""
        for name, own in self._run.model.named_parameters():
            if own is parameter:
                return name
        return f"a parameter {tuple(parameter.shape)} that is not the model's"

    def _kind(self, name: str) -> str:
        if name in dict(self._run.model.named_parameters()):
            return f"parameter {name}"
        return f"buffer {name}"

    def unreadable(self, state: Mapping[str, Any]) -> str | None:
        """Return which part of a state could be saved and not read back, or None."""
        for owner, part in self._owners(state):
            if found := unreadable(part):
                return (
                    f"{owner}: its state_dict(){found}, which can be saved but not read back; give "
                    "plain containers, numbers, strings and tensors, as float(x), list(x) or "
                    "torch.as_tensor(x) makes them"
                )
        return None

    def not_finite(self, state: Mapping[str, Any]) -> str | None:
        """Return what in a state is not finite, or None."""
        tensors, rest = {}, {}
        for name, value in state["model"].items():
            if isinstance(value, Tensor):
                tensors[name] = value
            else:
                rest[name] = value
        if said := self.first_fault(tensors):
            return said
        # A schedule keeps the metric that it was told, which may be NaN; what it makes of it is in
        # the optimizer.
        others = {}
        for key in ("plugins", "optimizer"):
            if key in state:
                others[key] = state[key]
        for owner, part in self._owners({**others, "model": rest}):
            if fault := not_a_number(part):
                return f"{owner}: its state_dict(){fault}{self._whose(fault)}"
        return None

    def _owners(self, state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield the parts of a state that come from elsewhere, each with what to call its owner."""
        run = self._run
        for name, part in state.get("plugins", {}).items():
            yield f"{run.recipe.raw.nearest('plugins', name)}: plugins.{name}", part
        owners = {"model": run.model, "optimizer": run.optimizer, "scheduler": run.scheduler}
        for key, owner in owners.items():
            if key in state:
                yield f"the {key} {type(owner).__name__}", state[key]
        yield (
            "the run",
            {key: part for key, part in state.items() if key not in owners and key != "plugins"},
        )

    def _whose(self, place: str) -> str:
        """Return to which parameter a place in the optimizer's state belongs."""
        found = re.match(r"\['state'\]\[(\d+)\]", place)
        owned = owned_by(self._run.optimizer)
        if found is None or int(found[1]) >= len(owned):
            return ""
        return f" for {self.name_of(owned[int(found[1])])}"
