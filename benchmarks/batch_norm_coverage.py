"""Convert, trace, evaluate and revert every BatchNorm model of timm on the meta device; print a
table by family.

Run: python benchmarks/batch_norm_coverage.py [--models 'resnet*'] [--json rows.jsonl]

No weights and no numbers: a model passes if conversion touches all of its BatchNorm layers,
training with ghost batches, channel groups and evaluation with example weighing give outputs of the
plain model's shape, parameters, buffers and state-dict keys are the same objects as before, and
reverting gives every module its class back.
"""

import argparse
import collections
import json
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import model_entrypoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from trainkit_plugins.batch_norm import convert_batch_norm, converted_layers, revert_batch_norm

BATCH = 4


def identity(model: nn.Module) -> list[Any]:
    """Return what a conversion must leave alone."""
    tensors = [(k, id(v)) for k, v in [*model.named_parameters(), *model.named_buffers()]]
    return [tensors, list(model.state_dict())]


def shape_of(output: Any) -> Any:
    """Return the shapes in a model's output."""
    if isinstance(output, Tensor):
        return tuple(output.shape)
    return [shape_of(o) for o in (output.values() if isinstance(output, dict) else output)]


def examine(name: str) -> dict[str, Any]:
    """Return one model's row: its layers by class, and the first thing that went wrong, if any."""
    model = timm.create_model(name, num_classes=10)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    classes = dict(collections.Counter(type(m).__name__ for m in norms))
    row = {
        "model": name,
        "family": model_entrypoint(name).__module__.split(".")[-1],
        "layers": classes,
    }
    if norms:
        odd = sum(m.num_features % 2 for m in norms)
        row |= {"odd_channels": odd, "problem": problem(model, len(norms), grouped=not odd)}
    return row


def problem(model: nn.Module, count: int, *, grouped: bool) -> str | None:
    """Return what goes wrong in converting, running and reverting, or None."""
    x = torch.empty(BATCH, *model.pretrained_cfg["input_size"])
    kinds, before = [type(m) for m in model.modules()], identity(model)
    try:
        expected = shape_of(model.train()(x))
        touched = convert_batch_norm(model, ghost_size=2, example_weight=0.1)
        if grouped:
            convert_batch_norm(model, channels_per_group=2)
        if len(touched) != count or len(converted_layers(model)) != count:
            return f"{len(touched)} of {count} layers touched"
        if shape_of(model(x)) != expected or shape_of(model.eval()(x)) != expected:
            return "another output shape"
        if identity(model) != before:
            return "other tensors or keys"
        revert_batch_norm(model)
        return (
            None if [type(m) for m in model.modules()] == kinds else "other classes after reverting"
        )
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    """Examine the models and print counts by family."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="*", help="a wildcard for timm.list_models")
    parser.add_argument(
        "--json", type=Path, help="keep a line for each model in this file, and go on from it"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    kept = options.json.read_text().splitlines() if options.json and options.json.exists() else []
    rows = {row["model"]: row for row in map(json.loads, kept)}
    names = timm.list_models(options.models)
    with torch.device("meta"):
        for name in names:
            if name in rows:
                continue
            rows[name] = examine(name)
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps(rows[name]) + "\n")
    report([rows[name] for name in names])


def report(rows: list[dict[str, Any]]) -> None:
    """Print the table and what failed."""
    ours = [row for row in rows if row["layers"]]
    bad = [row for row in ours if row["problem"]]
    families = collections.defaultdict(list)
    for row in ours:
        families[row["family"]].append(row)
    print(f"torch {torch.__version__}, timm {timm.__version__}, meta device, batch {BATCH}")
    print(
        f"{len(rows)} models, {len(ours)} with BatchNorm in {len(families)} families, "
        f"{len(ours) - len(bad)} pass\n"
    )
    kinds = sorted({k for row in ours for k in row["layers"]})
    print(
        "| family | models | pass | "
        + " | ".join(kinds)
        + " |\n|---"
        + "|---:" * (2 + len(kinds))
        + "|"
    )
    for family, members in sorted(families.items()):
        counts = [sum(row["layers"].get(k, 0) for row in members) for k in kinds]
        good = sum(not row["problem"] for row in members)
        print(f"| {family} | {len(members)} | {good} | " + " | ".join(map(str, counts)) + " |")
    totals = [sum(row["layers"].get(k, 0) for row in ours) for k in kinds]
    print(f"| all | {len(ours)} | {len(ours) - len(bad)} | " + " | ".join(map(str, totals)) + " |")
    odd = sum(row["odd_channels"] > 0 for row in ours)
    print(f"\nModels with a layer of an odd number of channels, run without channel groups: {odd}")
    for row in bad:
        print(f"{row['model']}: {row['problem']}")


if __name__ == "__main__":
    main()
