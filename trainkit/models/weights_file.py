"""`weights.safetensors`: a model's weights under timm's keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from trainkit.system.writes import atomically


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a model's state under timm's keys, so that plain timm loads it."""
    # Tied tensors share memory, which safetensors refuses; a contiguous copy of each does not.
    state = {}
    for name, tensor in model.state_dict().items():
        state[name] = tensor.detach().clone().contiguous()

    def write(part: Path) -> None:
        save_file(state, part, metadata={"format": "pt", **metadata})
        _order_metadata(part)

    atomically(path, write)


def _order_metadata(path: Path) -> None:
    """Sort what safetensors writes in random order: files with the same weights shall have the
    same bytes.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))  # the format allows spaces at the end
