"""Weights from files: what a file really holds, and how it fits a model.

Nothing that is read can run code. The content says what a file is, not its ending: safetensors, or
what `torch.save` wrote of tensors and plain containers. From a whole training state the model's
weights are taken, averaged ones first, as timm does; prefixes that wrappers put before every name
are taken off.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainkit.errors import UserError, one_line
from trainkit.system.foreign import ends_in_name, foreign, no_file

State = dict[str, Tensor]

_INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
"""Where in a training state the weights are: the first that is there counts."""

_FOREIGN_TO_TORCH = (".npz", ".npy")  # JAX's weights, which timm's models read themselves
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")  # how torch's messages name what is not plain
_SHOWN = 3  # names in a message


def read_weights(file: Path) -> State:
    """Return the named tensors in a file.

    Raises:
        UserError: it is not there, is cut off or something else, holds no weights, or could run
            code.
    """
    wrong = no_file(file)
    if wrong is not None:
        if wrong == "there is no such file":
            wrong = "there are no weights here"
        elif wrong == "is a folder" and no_file(file / "weights.safetensors") is None:
            wrong = "is a folder; name the weights.safetensors in it"
        raise UserError(f"{file}: {wrong}")
    try:
        found = _read(file)
    except _Unreadable as error:
        raise UserError(f"{file}: cannot be read as weights: {error}") from None
    return _named_tensors(found, file)


class _Unreadable(Exception):
    """The end of a sentence that says why a file cannot be read."""


def _read(file: Path) -> Any:
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            head = opened.read(64)
    except OSError as error:
        raise _Unreadable(f"it cannot be opened ({error.strerror})") from None
    if len(head) > 8 and head[8:9] == b"{":
        length = int.from_bytes(head[:8], "little")
        if length + 8 > size:
            message = f"it is cut off: its header has {length:,} bytes, the file {size:,}"
            raise _Unreadable(message + "; get it anew")
        try:
            return load_file(file)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise _Unreadable(
                f"it is cut off or damaged ({one_line(str(error), 160)}); get it anew"
            ) from None
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        what = foreign(file) or "is neither safetensors nor a file of torch.save"
        raise _Unreadable(f"it {what}")
    try:
        # timm's own training states hold their arguments as a Namespace, which is plain.
        with torch.serialization.safe_globals([argparse.Namespace]), file.open("rb") as opened:
            return torch.load(opened, map_location="cpu", weights_only=True)
    except Exception as error:  # spoiled bytes may raise anything
        raise _Unreadable(_why(error, file)) from None


def _why(error: Exception, file: Path) -> str:
    text = str(error)
    if "TorchScript" in text:
        return "it is a TorchScript program, not weights; save model.state_dict() alone"
    found = _GLOBAL.search(text)
    if isinstance(error, pickle.UnpicklingError) and found and not ends_in_name(found[1], file):
        fix = "where it was written, save model.state_dict() alone"
        return f"beside tensors it holds {found[1]}, and reading that could run code; {fix}"
    reason = one_line(text, 160) or type(error).__name__
    return f"it is cut off or damaged ({reason}); get it anew"


def _named_tensors(found: Any, file: Path) -> State:
    """Return the weights in what a file holds, under the names that the model gave them."""
    inside = found
    if isinstance(found, Mapping):
        key = next((key for key in _INSIDE if isinstance(found.get(key), Mapping)), None)
        if key is not None:
            inside = found[key]
    if not isinstance(inside, Mapping):
        raise UserError(
            f"{file}: cannot be read as weights: it holds {_kind(found)}, not tensors with names"
        )
    tensors = {}
    for name, value in inside.items():
        if isinstance(value, Tensor):
            tensors[str(name)] = value
    if not tensors:
        what = "it is an empty mapping"
        if inside:
            what = f"its keys are {_some([str(key) for key in inside])}"
        raise UserError(f"{file}: cannot be read as weights: it holds no tensors ({what})")
    return tensors


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"one tensor of {_shape(value)}"
    if value is None:
        return "nothing"
    return f"a {type(value).__name__}"


def _unwrapped(state: State, wanted: Sequence[str]) -> State:
    """Return the state without the prefixes that wrappers (DDP, compile, averaging, Lightning)
    put before all names.
    """
    known = set(wanted)
    while not known & state.keys():
        prefixes, unwrapped = set(), {}
        for name, value in state.items():
            if name != "n_averaged":  # the count of torch's AveragedModel
                prefix, dot, rest = name.partition(".")
                prefixes.add(prefix if dot else None)
                unwrapped[rest] = value
        if len(prefixes) != 1 or None in prefixes:
            break
        state = unwrapped
    return state


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a file into a model, every tensor of it.

    Args:
        model: the model.
        file: what `read_weights` reads, or a NumPy archive that the model itself can read.

    Raises:
        UserError: it cannot be read, or does not fit.
    """
    if not _load_by_model(model, file):
        fit_weights(model, read_weights(file), file)


def start_from(model: nn.Module, file: Path) -> list[str]:
    """Load a file into a model whose classifier may be for other classes; it then stays as it is,
    new.

    Returns:
        What the user should know: one line where the classifier is new.

    Raises:
        UserError: it cannot be read, or does not fit elsewhere.
    """
    if _load_by_model(model, file):
        return []
    state = _unwrapped(read_weights(file), list(model.state_dict()))
    own = model.state_dict()
    names = classifier_of(model)
    starts = tuple(f"{name}." for name in names)
    of_it = [key for key in {**own, **state} if key.startswith(starts)]
    differs = own.keys() & set(of_it) != state.keys() & set(of_it)
    alike = True
    for key in filter(state.__contains__, filter(own.__contains__, of_it)):
        differs = differs or own[key].shape != state[key].shape
        # A difference in more than the number of classes is a misfit like any other.
        alike = alike and own[key].shape[1:] == state[key].shape[1:]
    if not differs or not alike:
        fit_weights(model, state, file)
        return []
    kept = dict(state)
    for key in of_it:
        kept.pop(key, None)
        if key in own:
            kept[key] = own[key]
    fit_weights(model, kept, file)
    there, here = (len(found[of_it[0]]) if of_it[0] in found else 0 for found in (state, own))
    if not here:
        return [f"the classifier {', '.join(names)} of {file} is left out: the model has none"]
    if there:
        said = f"{there:,} classes in {file}, {here:,} here"
    else:
        said = f"{file} has none"
    return [f"the classifier {', '.join(names)} is new ({said})"]


def note_new_classifier(model: nn.Module) -> list[str]:
    """Return the line that says so where timm's weights have another number of classes than the
    model.
    """
    cfg, here = getattr(model, "pretrained_cfg", None), getattr(model, "num_classes", None)
    if isinstance(cfg, Mapping):
        there = (cfg or {}).get("num_classes")
    else:
        there = getattr(cfg, "num_classes", None)
    if not here or there is None or there == here:
        return []
    return [
        f"the classifier {', '.join(classifier_of(model))} is new ({there:,} classes in timm's "
        f"weights, {here:,} here)"
    ]


def classifier_of(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that give a timm model's outputs; none where it does not
    say.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if isinstance(cfg, Mapping):
        said = cfg.get("classifier")
    else:
        said = getattr(cfg, "classifier", None)
    if isinstance(said, str):
        return (said,)
    return tuple(said or ())


def _load_by_model(model: nn.Module, file: Path) -> bool:
    """Let a model read weights of JAX by itself; return whether these are such."""
    if file.suffix.lower() not in _FOREIGN_TO_TORCH or no_file(file) is not None:
        return False
    if not hasattr(model, "load_pretrained"):
        raise UserError(f"{file}: cannot be read as weights: this model takes no weights of NumPy")
    try:
        model.load_pretrained(str(file))  # type: ignore[operator]
    except Exception as error:  # spoiled bytes may raise anything
        raise UserError(f"{file}: cannot be read as weights: {one_line(str(error), 160)}") from None
    return True


def fit_weights(model: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """Put named tensors into a model, all of them and in every place.

    Raises:
        UserError: names or shapes differ; the message names those that do.
    """
    own = model.state_dict()
    state = _unwrapped(dict(state), list(own))
    wrong = []
    if missing := [name for name in own if name not in state]:
        wrong.append(f"Missing keys: {_some(missing)}")
    if unknown := [name for name in state if name not in own]:
        wrong.append(f"unknown keys: {_some(unknown)}")
    shapes = []
    for name in filter(state.__contains__, own):
        if state[name].shape != own[name].shape:
            file_shape, own_shape = _shape(state[name]), _shape(own[name])
            shapes.append(f"{name} ({file_shape} in the file, {own_shape} here)")
    if shapes:
        wrong.append(f"other shapes: {_some(shapes)}")
    if wrong:
        raise UserError(f"{file}: these weights do not fit the model: {'; '.join(wrong)}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # a layer may refuse what it is given
        raise UserError(
            f"{file}: these weights do not fit the model: {misfit(error)[:160]}"
        ) from None


def misfit(error: Exception) -> str:
    """Return in one line why torch could not load weights: its first line only says into what."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1:] or lines or [type(error).__name__])[0]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(one_line(name, 200) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single number"
