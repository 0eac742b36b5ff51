"""One trial pass of a finished run's model, so that what it refuses is said before anything is
written.

It goes over shapes alone, on torch's meta device, where it costs some 40 ms whatever the size of
the model. What fails there is tried in earnest, because not every operation knows that device, and
so is what costs less. Nothing of the run changes.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainkit.errors import Problem, first_line
from trainkit.hooks.run import Run

_MOST = 8  # examples of a pass in earnest
_CHEAP = (32_768, 500_000)
"""Numbers in the inputs and in the parameters of a pass that costs less on a CPU than one over
shapes.
"""


def trial_problems(run: Run) -> list[Problem]:
    """Return why the model cannot take the data's batches, or gives what the loss and the metrics
    cannot take.

    The sizes of training's batches count where core's forward pass is in use: a plugin that has its
    own way to the loss, as with few-shot tasks, gives the model other batches.
    """
    modes = [(module, module.training) for module in run.model.modules()]
    outputs: list[tuple[int, Any]] = []
    try:
        if _is_core(run, "compute_loss") and _is_core(run, "compute_output"):
            run.model.train()
            for size in _batch_sizes(run):
                output, error = _forward(run, size)
                if error is not None:
                    return [_refused(run, size, error)]
                outputs.append((size, output))
        run.model.eval()
        output, error = _forward(run, 2)
    finally:
        for module, training in modes:
            module.training = training
    if error is not None:
        return [_refused(run, 2, error)]
    if not _is_core(run, "evaluate_batch"):
        return []
    outputs.append((2, output))
    return next(
        ([_misshapen(run, o)] for n, o in outputs if _shape(o) != (n, run.data.num_classes)), []
    )


def _is_core(run: Run, hook: str) -> bool:
    """Return whether no plugin answers a value hook in core's place; those who only wrap it do
    not count.
    """
    implementations = getattr(run.hook, hook).get_hookimpls()
    return all(i.plugin_name == "core" for i in implementations if not i.wrapper)


def _batch_sizes(run: Run) -> list[int]:
    """Return how many inputs this rank's smallest and largest training batch have."""
    stream, sizes = run.data.train, set()
    for position in {0, stream.steps_per_epoch - 1}:
        window = stream.window(0, position)
        sizes |= {round(weight * window.examples / run.device.world) for weight in window.weights}
    return sorted({min(sizes) * run.data.aug_splits, max(sizes) * run.data.aug_splits})


def _forward(run: Run, size: int) -> tuple[Any, Exception | None]:
    """Return the model's output for `size` examples, or what it raises."""
    shape = (size, *run.data.input_size)
    if not _is_cheap(run, shape):
        inputs = torch.empty(shape, device="meta")
        with run.untouched(), torch.no_grad(), suppress(Exception):
            tensors = {}
            for name, t in _tensors(run.model):
                tensors[name] = t.to("meta")
            return functional_call(run.model, tensors, (inputs,), tie_weights=False), None
    most = max(1, _MOST // run.data.aug_splits) * run.data.aug_splits  # of each split as many
    shape = (min(size, most), *run.data.input_size)
    with run.untouched(), torch.no_grad(), run.device.autocast():
        try:
            output = run.model(torch.randn(shape, device=run.device.torch))
        except Exception as error:
            return None, error
    return (output if shape[0] == size else _stretched(output, size)), None


def _is_cheap(run: Run, shape: tuple[int, ...]) -> bool:
    inputs, parameters = _CHEAP
    return (
        run.device.torch.type == "cpu"
        and shape[0] <= _MOST
        and math.prod(shape) <= inputs
        and sum(p.numel() for p in run.model.parameters()) <= parameters
    )


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return every parameter and buffer once for each place that holds it.

    Named twice, as a module in two places of the tree would be, a place is not given back what it
    held (in CoaT).
    """
    held = []
    for path, module in model.named_modules():
        own = [*module._parameters.items(), *module._buffers.items()]
        for name, t in own:
            if t is not None:
                held.append((f"{path}.{name}" if path else name, t))
    return held


def _stretched(output: Any, size: int) -> Any:
    """Return an output as it would be for `size` examples, as far as its shape goes."""
    if isinstance(output, Tensor):
        return output.new_empty((size, *output.shape[1:]), device="meta")
    return output


def _shape(output: Any) -> tuple[int, ...] | None:
    if isinstance(output, Tensor):
        return tuple(output.shape)
    return None


def _refused(run: Run, size: int, error: Exception) -> Problem:
    recipe, where = run.recipe, run.recipe.raw.nearest
    name, wrong = recipe.model.name, first_line(error)
    shape = " x ".join(map(str, run.data.input_size))
    if "more than 1 value per channel" in wrong:
        what = (
            f"a training batch of {size} leaves a batch norm of {name} a single value per channel "
            "to normalise"
        )
        fix = (
            "set data.drop_last, take another batch_size or larger images, or a model with other "
            "norms"
        )
        return Problem(where("data", "batch_size"), "data.batch_size", f"{what}; {fix}")
    message = f"{name} cannot take {size} inputs of {shape}: {wrong}"
    if recipe.model.args:
        return Problem(where("model", "args"), "model.args", message)
    if len(run.data.input_size) == 3:
        return Problem(where("data", "image_size"), "data.image_size", message)
    return Problem(where("model"), "model", message)


def _misshapen(run: Run, output: Any) -> Problem:
    recipe, where, wanted = run.recipe, run.recipe.raw.nearest, run.data.num_classes
    shape = _shape(output)
    if shape is None:
        found = type(output).__name__
    else:
        found = f"[{', '.join(['N', *map(str, shape[1:])])}]"
    what = "numbers to predict"
    if run.data.targets == "classes":
        what = "classes"
    message = (
        f"{recipe.model.name} gives {found}, and the {wanted} {what} of these data want [N, "
        f"{wanted}]"
    )
    if recipe.model.num_classes not in (None, wanted):
        return Problem(
            where("model", "num_classes"), "model.num_classes", f"{message}; leave it out"
        )
    key = "name"
    if recipe.model.args:
        key = "args"
    return Problem(where("model", key), f"model.{key}", message)
