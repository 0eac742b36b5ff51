"""What a checkpoint may hold: values that can be read back without running code, and numbers
that are numbers.
"""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, float, str, type(None))
_CONTAINERS = (dict, OrderedDict, list, tuple)
_NORMED = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)


def unreadable(value: Any) -> str | None:
    """Return where in `value` stands the first thing that could be saved but not read back, and
    what it is.

    Read back means by `torch.load(weights_only=True)`, which runs no code: it gives plain
    containers, numbers, strings and tensors. What is none of these is tried, because what else
    torch reads differs between its versions.
    """
    for place, part in _parts(value):
        if not _is_plain(part) and not _comes_back(part):
            kind = type(part)
            home = ""
            if kind.__module__ != "builtins":
                home = f"{kind.__module__}."
            return f"{place} is of type {home}{kind.__qualname__}"
    return None


def not_a_number(value: Any) -> str | None:
    """Return where in `value` stands the first tensor that is not finite or number that is NaN, and
    what is wrong.

    A Python number may be infinite, as the best value so far is where there is none yet; a tensor
    may not.
    """
    tensors: dict[str, Tensor] = {}
    for place, part in _parts(value):
        if isinstance(part, Tensor):
            tensors[place] = part
        elif isinstance(part, float) and math.isnan(part):
            return f"{place} is nan"
    found = first_bad(list(tensors.values()))
    if found is None:
        return None
    return f"{list(tensors)[found[0]]} holds {found[1]}"


def first_bad(tensors: Sequence[Tensor]) -> tuple[int, str] | None:
    """Return which tensor is the first that is not finite, and whether it has nan or inf; waits
    for the device.
    """
    places: dict[torch.device, list[int]] = {}
    values: dict[torch.device, list[Tensor]] = {}
    for place, tensor in enumerate(tensors):
        numbers = _numbers(tensor)
        if numbers is not None:
            places.setdefault(numbers.device, []).append(place)
            values.setdefault(numbers.device, []).append(numbers)
    for device, here in values.items():
        bad = ~magnitudes(here).isfinite()
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            what = "inf"
            if bool(here[first].isnan().any()):
                what = "nan"
            return places[device][first], what
    return None


def magnitudes(tensors: Sequence[Tensor]) -> Tensor:
    """Return one number for each tensor, finite exactly where all of the tensor is, without waiting
    for the device.

    Args:
        tensors: dense, none of them empty, of floating or complex dtypes.

    Returns:
        A vector on the device of the first tensor.
    """
    with torch.no_grad():
        # On a CPU the largest size takes ten times as long as the Euclidean norm, which may
        # overflow; but looking at it costs nothing there.
        if tensors[0].device.type == "cpu":
            norms = _stack(torch._foreach_norm(list(tensors)))
            if bool(norms.isfinite().all()):
                return norms
        return _stack(torch._foreach_norm(list(tensors), math.inf))


def _stack(norms: Sequence[Tensor]) -> Tensor:
    device = norms[0].device
    if any(norm.device != device for norm in norms):
        norms = [norm.to(device) for norm in norms]
    return torch.stack(list(norms))


def _numbers(tensor: Tensor) -> Tensor | None:
    """Return what of a tensor can be other than finite, as `magnitudes` takes it."""
    if (
        tensor.is_meta
        or tensor.is_quantized
        or not (tensor.is_floating_point() or tensor.is_complex())
    ):
        return None
    values = tensor.detach()
    if values.layout != torch.strided:
        values = values.to_dense() if values.layout != torch.sparse_coo else values._values()
    if values.dtype not in _NORMED:
        values = values.float()
    if values.numel():
        return values
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every part of nested containers with its place, such as `['mean'][0]`; plain
    containers only by theirs.
    """
    waiting: list[tuple[str, Any]] = [("", value)]
    seen: set[int] = set()
    while waiting:
        place, part = waiting.pop()
        if type(part) not in _CONTAINERS:
            yield place, part
        if not isinstance(part, Mapping | list | tuple | set | frozenset) or id(part) in seen:
            continue
        seen.add(id(part))  # a list may hold itself
        if isinstance(part, Mapping):
            keys: list[tuple[str, Any]] = []
            inner: list[tuple[str, Any]] = []
            for key, value in part.items():
                if type(key) not in (str, int):
                    keys.append((f"{place}: its key {key!r}", key))
                inner.append((f"{place}[{key!r}]", value))
            waiting += [*keys, *inner][::-1]
        else:
            waiting += [(f"{place}[{i}]", item) for i, item in enumerate(part)][::-1]


def _is_plain(part: Any) -> bool:
    if type(part) is int:
        return part.bit_length() < 1024  # longer ones are written in a way that torch does not read
    return type(part) in _PLAIN or (type(part) in (Tensor, nn.Parameter) and not vars(part))


def _comes_back(part: Any) -> bool:
    file = io.BytesIO()
    try:
        torch.save(part, file)
        file.seek(0)
        found = torch.load(file, weights_only=True)
    except Exception:  # whatever it is that cannot be written or read
        return False
    return type(found) is type(part)
