"""`trainkit tune-bn`: batch norm's inference statistics chosen after training, for any run or
timm model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

from trainkit import (
    Batch,
    Run,
    Terminal,
    UserError,
    atomically,
    figure,
    open_run,
    style,
    to_json,
    write_text,
)

from .alphas import ALPHAS, evaluating, sweep
from .plots import curve_table, draw_curves
from .statistics import pooled_statistics
from .surgery import convert_batch_norm
from .worth import Choice, choose_on_half

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="a run folder, a recipe, or the name of a timm model (then with data.…)",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE …]", help="set a key (a.b=1) or remove one (~a.b)"),
]
_TRIED = ",".join(map("{:g}".format, ALPHAS))


def tune_bn(
    target: Target,
    overrides: Overrides = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="best, last, or a file of weights; default: a run's best, the recipe's own"
        ),
    ] = None,
    alphas: Annotated[str, typer.Option(help="what to try, in [0, 1]")] = _TRIED,
    metric: Annotated[
        Literal["nll", "accuracy"], typer.Option(help="what alpha shall be best in")
    ] = "nll",
    reestimate: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="BATCHES",
            help="measure running statistics anew on so many training batches",
        ),
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="folder for the results; default: tune-bn in the run folder")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Choose alpha, an example's weight in its own batch-norm statistics at inference, on
    validation data.

    The examples in even positions of the validation data choose; those in odd positions tell what
    the choice is worth. Nothing is trained. Without --reestimate the weights stay as they are.
    """
    tried = _alphas(alphas)
    run = open_run(target, [*(overrides or []), "train.compile=false"], weights)
    spec = run.recipe.model
    if weights is None and not os.path.isdir(target) and not (spec.pretrained or spec.checkpoint):
        raise UserError(
            f"{target}: a model that was never trained has nothing to tune; name a file with "
            "--weights"
        )
    folder = _folder(out, target)
    try:
        convert_batch_norm(
            run.model, example_weight=1.0
        )  # refused by a layer without running statistics
        convert_batch_norm(run.model, example_weight=0.0)
        before = _sweep(run, [0.0]) if reestimate else None
        used = _reestimate(run, reestimate) if reestimate else 0
        choice = choose_on_half(_sweep(run, tried), tried, metric, before)
    except ValueError as error:
        raise UserError(f"{target}: {error}") from None
    facts = {"target": target, "model": spec.name, "reestimated_on": used, **choice.facts()}
    files = _write(run, folder, choice, facts, reestimated=used > 0)
    if as_json:
        print(to_json(facts, indent=2))  # noqa: T201 - rich would wrap it
    else:
        _show(choice, used, files, run.data.summary)


def _alphas(text: str) -> list[float]:
    try:
        found = sorted({0.0, *(float(part) for part in text.split(","))})
    except ValueError:
        raise UserError(f"--alphas: {text!r} is no list of numbers such as 0,0.05,0.1") from None
    if not all(0 <= alpha <= 1 for alpha in found):
        raise UserError(f"--alphas: {text!r} has a number outside [0, 1]")
    return found


def _folder(out: Path | None, target: str) -> Path:
    folder = out or (
        Path(target) / "tune-bn" if os.path.isdir(target) else Path(f"tune-bn-{Path(target).stem}")
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror}; choose another --out"
        ) from None
    return folder


def _sweep(run: Run, alphas: list[float]) -> Tensor:
    evaluate = partial(run.hook.evaluate_batch, model=run.model, run=run)
    with evaluating(run.model):
        return sweep(run.model, run.data.val, lambda batch: evaluate(batch=batch), alphas)


def _reestimate(run: Run, batches: int) -> int:
    def inputs() -> Iterator[Tensor]:
        for batch in islice(run.data.train.batches(0, 0), batches):
            if not isinstance(batch, Batch):
                raise ValueError(
                    "--reestimate needs batches of images, and these data give "
                    f"{type(batch).__name__}"
                )
            yield run.device.move(batch).inputs

    with run.device.autocast():
        used = pooled_statistics(run.model, inputs())
    if bad := [
        name for name, buffer in run.model.named_buffers() if not bool(buffer.isfinite().all())
    ]:
        raise ValueError(
            f"--reestimate: {bad[0]} is not finite on these batches; the model's weights are too "
            "large"
        )
    return used


def _write(
    run: Run, folder: Path, choice: Choice, facts: dict[str, Any], reestimated: bool
) -> list[Path]:
    files = [folder / "tune-bn.json", folder / "tune-bn.png"]
    write_text(files[0], to_json(facts, indent=2) + "\n")
    with style():
        drawn, axes = figure(1, 3, height=2.9)
        draw_curves(
            axes, choice.alpha, {"choosing half": choice.curve, "reporting half": choice.reported}
        )
        atomically(
            files[1], lambda part: drawn.savefig(part, format="png", dpi=160, facecolor="white")
        )
    if reestimated:
        files.append(folder / "weights.safetensors")
        state = {
            name: tensor.detach().cpu().clone().contiguous()
            for name, tensor in run.model.state_dict().items()
        }
        about = {"format": "pt", "model": run.recipe.model.name, "alpha": repr(choice.alpha)}
        atomically(files[-1], lambda part: save_file(state, part, about))
    return files


def _show(choice: Choice, used: int, files: list[Path], data: str) -> None:
    console = Terminal()
    header, *rows = curve_table(choice.curve, choice.alpha)
    table = Table(
        *header, title=f"{choice.examples[0]} validation examples that choose (by {choice.metric})"
    )
    for row in rows:
        table.add_row(*row)
    console.print(table)
    header, *rows = choice.verdict()
    table = Table(*header, title=f"{choice.examples[1]} other validation examples")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(
        f"data: {data}" + (f"; statistics measured on {used} training examples" if used else "")
    )
    console.print(choice.summary())
    for file in files:
        console.print(str(file))
