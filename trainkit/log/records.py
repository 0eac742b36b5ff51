"""What a run measures: one value per name and step, kept on its device until it is written.

Recording a tensor costs no device synchronisation. Values reach the host together, every few steps,
and go to `metrics.jsonl` (one JSON object per line) and to the `on_log` hook.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.errors import UserError
from trainkit.system.strict_json import to_json
from trainkit.system.writes import append, writing

if TYPE_CHECKING:
    from torch import Tensor

Value = float | list[float]
_TAKEN = ("step", "epoch")
_LONGEST = 1024
"""Numbers in a logged vector: one has its line in `metrics.jsonl` at every step."""


@dataclass(frozen=True)
class Record:
    """The values of one optimizer step, or of one validation (names under `val/`), on the host.

    `epoch` counts from 0, as `Run.epoch` does; in files and for people epochs count from 1.
    """

    step: int
    epoch: int
    values: dict[str, Value]

    def to_json(self) -> str:
        """Return one line of `metrics.jsonl`, where epochs count from 1, and values that are not
        finite are null.
        """
        return to_json({"step": self.step, "epoch": self.epoch + 1, **self.values})


class Log:
    """Collects values during a run.

    Args:
        path: `metrics.jsonl`, or None to keep nothing on disk (ranks other than 0).
        average: mean over ranks of the losses of the pending steps.
    """

    def __init__(
        self, path: Path | None = None, average: Callable[[list[float]], list[float]] | None = None
    ) -> None:
        self.path = path
        self.notes: list[str] = []
        self._size: int | None = None
        self._average = average
        self._current: dict[str, Tensor | float] = {}
        self._pending: list[tuple[int, int, dict[str, Tensor | float]]] = []

    def record(self, name: str, value: Tensor | float) -> None:
        """Keep `value` (a number, a scalar tensor, or a short vector) under `name` for the current
        step.

        Raises:
            ValueError: the name is one under which every record has its place, or the vector is
                long.
            TypeError: the value is something else, or the name is no text.
        """
        if not isinstance(name, str):
            raise TypeError(
                f"a value is logged under a name, and this is a {type(name).__name__}: {name!r}"
            )
        if name in _TAKEN:
            raise ValueError(
                f"a record has its own {name!r}; log the value under another name, such as "
                f"my_plugin/{name}"
            )
        # What is recorded now must not change with the tensor later, nor keep its graph alive until
        # the flush.
        self._current[name] = _kept(name, value)

    def note(self, text: str) -> None:
        """Say something once that the user should know; it is shown, and kept in the summary and
        report.
        """
        text = str(text)  # whatever a plugin gives; it is saved
        if text not in self.notes:
            self.notes.append(text)

    def commit(self, step: int, epoch: int) -> None:
        """Close the current step: what has been recorded since the last call belongs to it."""
        if self._current:
            self._pending.append((step, epoch, self._current))
            self._current = {}

    @property
    def pending(self) -> int:
        """How many steps wait to be flushed."""
        return len(self._pending)

    def flush(self) -> list[Record]:
        """Bring the pending values to the host, write them, and return them."""
        pending, self._pending = self._pending, []
        waiting: list[Tensor | float] = []
        for _, _, values in pending:
            waiting += values.values()
        host = _to_host(waiting)
        records = []
        for step, epoch, values in pending:
            records.append(Record(step, epoch, dict(zip(values, host, strict=False))))
        if self._average is not None:
            self._average_losses(records)
        if self.path is not None and records:
            self._size = append(
                self.path, "".join(record.to_json() + "\n" for record in records), self._size
            )
        return records

    def _average_losses(self, records: Sequence[Record]) -> None:
        """Put the mean over ranks in the place of each loss."""
        assert self._average is not None
        with_loss, losses = [], []
        for record in records:
            loss = record.values.get("loss")
            if isinstance(loss, float):
                with_loss.append(record)
                losses.append(loss)
        for record, mean in zip(with_loss, self._average(losses), strict=True):
            record.values["loss"] = mean

    def state_dict(self) -> dict[str, Any]:
        """Return how far `metrics.jsonl` had been written, having made sure that it is on disk."""
        if self.path is None or not (self._size or self.path.exists()):
            return {"bytes": 0, "notes": list(self.notes)}
        with writing(self.path), self.path.open("rb") as file:
            os.fsync(file.fileno())
            return {"bytes": file.seek(0, os.SEEK_END), "notes": list(self.notes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut `metrics.jsonl` back to where it was, so that steps taken again are not counted
        twice.
        """
        self.notes = list(state["notes"])
        if self.path is None:
            return
        size = 0
        if self.path.exists():
            size = self.path.stat().st_size
        if size < state["bytes"]:
            raise UserError(
                f"{self.path}: has {size} bytes but the checkpoint was written after "
                f"{state['bytes']}; the file was changed since: restore it, or start a new run"
            )
        if size:
            with writing(self.path):
                os.truncate(self.path, state["bytes"])
        self._size = state["bytes"]


def _kept(name: str, value: Any) -> Tensor | float:
    """Return what is logged as a number or a copied tensor, or refuse it where its plugin can
    still be named.
    """
    if not hasattr(value, "detach"):
        try:
            if not isinstance(value, str | bytes):
                return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
        what = f"a {type(value).__name__}: {value!r:.80}"
        raise TypeError(f"{name}: only numbers and tensors can be logged, and this is {what}")
    import torch

    if value.is_complex() or value.layout is not torch.strided:
        raise TypeError(
            f"{name}: only real, dense tensors can be logged, and this is {value.dtype}, "
            f"{value.layout}"
        )
    if value.ndim > 1 or value.numel() > _LONGEST:
        raise ValueError(
            f"{name}: a tensor of shape {list(value.shape)} is too much for a log (a vector may "
            f"have {_LONGEST} numbers); log its mean or its norm"
        )
    copied: Tensor = value.detach().clone()
    return copied


def _to_host(values: Sequence[Tensor | float]) -> Iterator[Value]:
    """Yield each value as a number or a list of numbers, with one transfer per device."""
    import torch

    tensors = [(i, v.detach()) for i, v in enumerate(values) if isinstance(v, torch.Tensor)]
    found: dict[int, Value] = {}
    for device in dict.fromkeys(t.device for _, t in tensors):
        here = [(i, t) for i, t in tensors if t.device == device]
        # float64 holds every float32 and every count exactly; Apple's GPUs do not have it.
        if device.type == "mps":
            wide = torch.float32
        else:
            wide = torch.float64
        flat = torch.cat([t.reshape(-1).to(wide) for _, t in here]).tolist()
        start = 0
        for i, t in here:
            found[i] = flat[start] if t.ndim == 0 else flat[start : start + t.numel()]
            start += t.numel()
    for i, value in enumerate(values):
        yield found[i] if i in found else float(value)
