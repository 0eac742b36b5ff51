"""Where a model gets noise: found by running it once, not by the names of its layers.

The paper's rule is "the output of every convolution, before normalization and nonlinearity". Here:
the output of each Conv2d that a norm reads next, and of each Linear layer that an activation reads
next (mlp.fc1 of a transformer); in a network that has no such convolution, of each Conv2d that an
activation reads next. Convolutions on the shortcut of a residual block get none: their input
reaches the sum without noise, as the identity does elsewhere. Nor do those that compute a gate
(squeeze-and-excitation) in networks without norms.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

SHORTCUTS = frozenset({"shortcut", "skip", "project"})
"""What timm calls the branch of a residual block that only changes the shape."""
AMBIGUOUS = "downsample"
"""In some families such a branch, in others the layers between two stages, which have no other
branch beside them.
"""
NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

Reader = Literal["norm", "activation", "other"]


@dataclass(frozen=True)
class Site:
    """One layer whose output can get noise.

    Attributes:
        name: of the layer, a Conv2d or Linear.
        calls: how often it is called in a forward pass.
        reader: what reads its output next.
    """

    name: str
    calls: int
    reader: Reader


@dataclass
class _Output:
    """What a layer gave in the probe, and who read it before it was changed."""

    name: str
    tensor: Tensor
    version: int
    readers: set[Reader] = field(default_factory=set)


def is_norm(module: nn.Module) -> bool:
    """Return whether a module normalizes: torch's norms, and by name those of others that hold
    vectors only.
    """
    named = "norm" in type(module).__name__.lower() and not any(
        isinstance(m, nn.Conv2d | nn.Linear) for m in module.modules()
    )
    return isinstance(module, NORMS) or named


def is_gate(module: nn.Module) -> bool:
    """Return whether a module makes factors of what it reads: sigmoids of any kind, softmax."""
    return isinstance(module, nn.Softmax) or "sigmoid" in type(module).__name__.lower()


def is_activation(module: nn.Module) -> bool:
    """Return whether a module is a nonlinearity, of torch's or timm's or in a model's own file;
    gates are not.
    """
    if is_gate(module) or isinstance(module, nn.MultiheadAttention):
        return False
    at_home = type(module).__module__.rpartition(".")[2].startswith("activation")
    return (
        (at_home or type(module).__name__.endswith("Act"))
        and not is_norm(module)
        and not any(module.children())
    )


class _Probe:
    """Watches one forward pass of a copy of the model."""

    def __init__(self, model: nn.Module) -> None:
        self.outputs: list[_Output] = []
        self.reads: dict[str, list[Tensor]] = {}
        for name, module in model.named_modules():
            module.register_forward_pre_hook(self._reader(name, module), with_kwargs=False)
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(self._writer(name))

    def _reader(self, name: str, module: nn.Module):  # type: ignore[no-untyped-def]
        kind: Reader = "other"
        if is_norm(module):
            kind = "norm"
        elif is_activation(module):
            kind = "activation"

        def hook(_: nn.Module, args: tuple[object, ...]) -> None:
            if not args or not isinstance(args[0], Tensor):
                return
            self.reads.setdefault(name, []).append(args[0])
            for output in reversed(self.outputs):
                if kind != "other" and _same(args[0], output.tensor):
                    if output.tensor._version == output.version:
                        output.readers.add(kind)
                    break

        return hook

    def _writer(self, name: str):  # type: ignore[no-untyped-def]
        def hook(layer: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
            self.outputs.append(_Output(name, result, result._version))

        return hook

    def on_shortcut(self, name: str) -> bool:
        """Return whether a layer lies in a branch that is called a shortcut, or downsamples
        beside another one.
        """
        parts = name.split(".")
        if not SHORTCUTS.isdisjoint(parts):
            return True
        if AMBIGUOUS not in parts:
            return False
        branch = ".".join(parts[: parts.index(AMBIGUOUS) + 1])
        own = self.reads.get(branch) or self.reads.get(name, [])
        for other, read in self.reads.items():
            kin = (
                other in ("", branch)
                or other.startswith(branch + ".")
                or branch.startswith(other + ".")
            )
            if not kin and any(_same(a, b) for a in own for b in read):
                return True
        return False


def _same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are one, or views of one."""
    base_a, base_b = (a if a._base is None else a._base), (b if b._base is None else b._base)
    return base_a is base_b


def probe(model: nn.Module, example: Tensor) -> list[Site]:
    """Return every Conv2d and Linear layer of the model that could get noise, in the order of their
    first call.

    Args:
        model: stays as it is; a copy in evaluation mode is run once, on its device.
        example: inputs [N, C, H, W].
    """
    copied = copy.deepcopy(model).eval()
    watch = _Probe(copied)
    with torch.no_grad():
        copied(example)
    found: dict[str, list[_Output]] = {}
    for output in watch.outputs:
        found.setdefault(output.name, []).append(output)
    sites = []
    for name, outputs in found.items():
        readers = set().union(*(output.readers for output in outputs))
        reader: Reader = "other"
        if "norm" in readers and not watch.on_shortcut(name):
            reader = "norm"
        elif "activation" in readers and not any(
            map(is_gate, model.get_submodule(name.rpartition(".")[0]).children())
        ):
            reader = "activation"
        sites.append(Site(name, len(outputs), reader))
    return sites


def choose(
    model: nn.Module, found: Sequence[Site], wanted: Literal["auto"] | Sequence[str] = "auto"
) -> list[Site]:
    """Return those layers that get noise.

    Args:
        model: the probed model.
        found: what `probe` has found in it.
        wanted: `auto` for the rule of this module, or patterns of layer names (`layer4.*.conv2`).

    Raises:
        ValueError: there is none, or a pattern fits none.
    """
    kinds = {name: type(model.get_submodule(name)) for name in (site.name for site in found)}
    if not isinstance(wanted, str):
        return _matching(found, wanted)
    convolutions = [site for site in found if issubclass(kinds[site.name], nn.Conv2d)]
    before_norm = {site.name for site in convolutions if site.reader == "norm"}
    chosen = before_norm or {site.name for site in convolutions if site.reader == "activation"}
    chosen |= {
        s.name for s in found if issubclass(kinds[s.name], nn.Linear) and s.reader == "activation"
    }
    if not chosen:
        raise ValueError(
            "no layer found whose output a norm or an activation reads next; name layers in "
            "`sites`, such as " + ", ".join(site.name for site in found[:3])
        )
    return [site for site in found if site.name in chosen]


def _matching(found: Sequence[Site], patterns: Iterable[str]) -> list[Site]:
    names = [site.name for site in found]
    wanted: set[str] = set()
    for pattern in patterns:
        fitting = {name for name in names if fnmatchcase(name, pattern)}
        if not fitting:
            near = get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(
                f"`sites`: no convolution or linear layer that the model calls fits {pattern!r}; "
                f"there are {len(names)}, such as {', '.join(near)}"
            )
        wanted |= fitting
    return [site for site in found if site.name in wanted]
