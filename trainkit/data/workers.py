"""How batches come from the processes that read them, whatever memory these can share with this
one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import joblib
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from trainkit.errors import TrainingError, UserError
from trainkit.system.signals import held_back

_MOST = 8
"""Workers of a rank that nobody asked for: each holds batches, and more of them seldom read
faster.
"""


def number(asked: int | None) -> int:
    """Return how many workers a rank has: as many as were asked for, or its share of the cores
    it may use.
    """
    if asked is not None:
        return asked
    cores: int = (
        joblib.cpu_count()
    )  # less where a container or a job has been given fewer than the machine has
    return max(1, min(_MOST, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class _Piped:
    """What comes in place of a tensor that does not fit into shared memory."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array


class _Failed:
    """What comes in place of a batch: the error with which reading it ended."""

    def __init__(self, error: UserError | TrainingError) -> None:
        self.error = error


class Carrier(Dataset[Any]):
    """Examples whose errors cross from a worker process as they are.

    torch would put a worker's traceback into the message.

    Args:
        examples: a set of examples that is read in whole batches.
    """

    def __init__(self, examples: Any) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, keys: Sequence[Any]) -> Any:
        try:
            return self.examples.__getitems__(keys)
        except (UserError, TrainingError) as error:
            return _Failed(error)


def handed_over(batch: Any) -> Any:
    """Move a batch's tensors to shared memory, in the process that read it; elsewhere return it as
    it is.

    torch would do so in a thread of that process, where an error is lost and the run waits for
    ever. What does not fit (a container's /dev/shm often has 64 MB) becomes arrays, which go
    through a pipe: slower, and the same numbers.
    """
    return batch if get_worker_info() is None else _with_each(batch, torch.Tensor, _shared)


def _shared(tensor: torch.Tensor) -> Any:
    try:
        shared: torch.Tensor = tensor.share_memory_()  # type: ignore[no-untyped-call]
        return shared
    except RuntimeError:
        return _Piped(tensor.numpy())


def read(loader: DataLoader[Any], note: Callable[[str], None]) -> Iterator[Any]:
    """Begin to read a loader's batches, and return them one by one.

    Args:
        loader: of a `Carrier`, with `handed_over` as its `collate_fn` and `obey_parent_only` as its
            `worker_init_fn`.
        note: is told where batches do not fit into shared memory.

    Raises:
        TrainingError: the processes that read cannot be started.
    """
    try:
        with held_back():
            batches = iter(loader)
    except OSError as error:
        raise TrainingError(
            f"{loader.num_workers} data workers cannot be started: {error.strerror or error}; "
            "make room in /dev/shm, raise the limit on processes, or set data.workers=0"
        ) from None
    return _received(batches, note)


def end(loader: DataLoader[Any]) -> None:
    """End the processes that read, if there are any."""
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()  # type: ignore[attr-defined]
        loader._iterator = None


def _received(batches: Iterator[Any], note: Callable[[str], None]) -> Iterator[Any]:
    """Yield batches as tensors; raise the error that one is."""

    def tensor(piped: _Piped) -> torch.Tensor:
        note(
            "/dev/shm has no room for the batches of the data workers, and they come another way, "
            "which is slower; give it more (docker run --shm-size), lower data.workers, or make "
            "batches smaller"
        )
        return torch.from_numpy(piped.array)

    for batch in batches:
        if isinstance(batch, _Failed):
            raise batch.error
        yield _with_each(batch, _Piped, tensor)


def _with_each(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Change every value of a kind inside tuples, lists and mappings."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_with_each(v, kind, change) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(_with_each(v, kind, change) for v in value)
    if isinstance(value, dict):
        return {key: _with_each(v, kind, change) for key, v in value.items()}
    return value
