"""Where and how arithmetic runs: the device, its precision, and the other ranks of a distributed
run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer

from trainkit.config.recipe import Recipe
from trainkit.errors import Problem, RecipeError
from trainkit.models.convolution import SoundConvolutions

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Scaler(torch.amp.GradScaler):
    """torch's, for a step whose gradients may be computed more than once."""

    def unscale_again(self, optimizer: Optimizer) -> None:
        """Unscale gradients that have replaced unscaled ones, by the same scale.

        The step is skipped if the earlier ones or these are not finite.
        """
        if not self.is_enabled():
            return
        state = self._per_optimizer_states[id(optimizer)]
        before = state["found_inf_per_device"]
        state["stage"] = OptState.READY
        self.unscale_(optimizer)
        now = state["found_inf_per_device"]
        state["found_inf_per_device"] = now | {
            device: torch.maximum(found, now[device]) if device in now else found
            for device, found in before.items()
        }


class Device:
    """One rank's device. Under torchrun it joins the other ranks; alone it is rank 0 of 1.

    Args:
        spec: the `train:` section of the recipe.

    Attributes:
        torch: the device as torch knows it.
        rank: which process this is.
        world: how many there are.
        scaler: scales the loss in fp16, does nothing otherwise.

    Raises:
        RecipeError: the device is not there, or cannot do what the recipe asks.
    """

    def __init__(self, recipe: Recipe) -> None:
        spec = recipe.train
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.torch = _resolve(recipe)
        self.dtype = _DTYPES[spec.precision]
        if spec.sync_batchnorm and self.torch.type != "cuda":
            wrong = "torch has it on CUDA only; set it to false"
            raise _refusal(recipe, "sync_batchnorm", wrong)
        if self.torch.type == "cuda":
            torch.cuda.set_device(self.torch)
        _set_determinism(spec.deterministic)
        self.scaler = Scaler(self.torch.type, enabled=self.dtype is torch.float16)
        self._control: Any = None
        if self.world > 1:
            if not dist.is_initialized():
                dist.init_process_group("nccl" if self.torch.type == "cuda" else "gloo")
            # Small messages about control go over their own CPU group: they never wait for the
            # device.
            self._control = dist.new_group(backend="gloo")

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and speaks to the user."""
        return self.rank == 0

    def autocast(self, *, enabled: bool = True) -> AbstractContextManager[Any]:
        """Return the context in which a model's forward pass and loss run, or one in which it is
        off.

        The loop enters it around `compute_loss`. What must keep full precision there goes into
        `enabled=False`.
        """
        if self.dtype is torch.float32:
            return nullcontext()
        context = torch.autocast(self.torch.type, self.dtype, enabled=enabled)
        if self.torch.type == "cpu":
            return _soundly(context)
        return context

    def move(self, value: Any) -> Any:
        """Move every tensor in a batch (tensors in tuples, lists and mappings) to the device."""
        if isinstance(value, Tensor):
            return value.to(self.torch, non_blocking=True)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self.move, value))
        if isinstance(value, list | tuple):
            return type(value)(map(self.move, value))
        if isinstance(value, dict):
            return {key: self.move(v) for key, v in value.items()}
        return value

    def replicate(self, module: nn.Module) -> nn.Module:
        """Wrap a module whose forward gives the loss so that gradients are averaged over ranks."""
        if self.world == 1:
            return module
        return nn.parallel.DistributedDataParallel(
            module, device_ids=[self.torch.index] if self.torch.type == "cuda" else None
        )

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank rank 0's buffers: batch statistics differ between ranks during an
        epoch.
        """
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def average(self, values: list[float]) -> list[float]:
        """Return the mean over ranks of each value."""
        if self.world == 1 or not values:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._control)
        means: list[float] = (total / self.world).tolist()
        return means

    def any(self, flag: bool) -> bool:
        """Return whether any rank says so: ranks must stop at the same step."""
        if self.world == 1:
            return flag
        votes = torch.tensor([flag], dtype=torch.int32)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._control)
        return bool(votes.item())

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's `value`, in order of rank, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._control)
        return values

    def close(self) -> None:
        """Leave the distributed run."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def describe(self) -> str:
        """Return one line: device, precision, ranks."""
        if self.torch.type == "cuda":
            name = torch.cuda.get_device_name(self.torch)
        else:
            name = str(self.torch)
        precision = next(name for name, dtype in _DTYPES.items() if dtype is self.dtype)
        return f"{name}, {precision}, {self.world} rank(s)"


@contextmanager
def _soundly(context: AbstractContextManager[Any]) -> Iterator[None]:
    with context, SoundConvolutions():
        yield


def _resolve(recipe: Recipe) -> torch.device:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    name = recipe.train.device
    if name == "auto":
        name = "cpu"
        if torch.backends.mps.is_available():
            name = "mps"
        if torch.cuda.is_available():
            name = "cuda"
    device = torch.device(name)
    if device.type == "cuda":
        count = 0
        if torch.cuda.is_available():
            count = torch.cuda.device_count()
        if device.index is None:
            index = local
        else:
            index = device.index
        if index >= count:
            wrong = f"there is no {name} here (CUDA devices: {count}); use train.device=auto"
            raise _refusal(recipe, "device", wrong)
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise _refusal(recipe, "device", "there is no mps here; use train.device=auto")
    return device


def _refusal(recipe: Recipe, option: str, wrong: str) -> RecipeError:
    return RecipeError([Problem(recipe.raw.nearest("train", option), f"train.{option}", wrong)])


def _set_determinism(wanted: bool) -> None:
    if wanted:
        # cuBLAS reads this once, when it starts; without it torch refuses its matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    # Filling memory that is about to be written anyway only costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not wanted


def to_channels_last(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the image tensors (4-D) of an iterable in channels-last memory format, the others
    as they are.
    """
    found: list[Tensor] = []
    for t in tensors:
        found.append(t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t)
    return found
