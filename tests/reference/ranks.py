"""Run as a script on each rank by test_distributed: train a recipe and write down what this rank
ends with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from trainkit.errors import Interrupted, TrainingError
from trainkit.training.build import build, compose
from trainkit.training.checkpoint import read_state
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import fit


def main(recipe: Path, folder: Path, until: int, overrides: list[str]) -> None:
    """Train to step `until` (0: to the end), going on from the checkpoint in `folder` if there
    is one.
    """
    torch.set_num_threads(1)
    run = build(compose(recipe, overrides), folder)
    checkpointer = Checkpointer(run.folder, run)
    last = folder / "checkpoints" / "last.pt"
    if last.exists():
        checkpointer.restore(run, read_state(last))
    error = ""
    try:
        fit(run, checkpointer, until=until or None)
    except Interrupted:
        pass
    except TrainingError as failure:
        error = str(failure)
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    seen = {
        "weights": weights,
        "metrics": checkpointer.outcome.final,
        "examples_per_step": run.data.train.examples_per_step,
    }
    seen |= {"stop_reason": run.stop_reason, "step": run.step, "error": error}
    torch.save(seen, folder / f"rank{run.device.rank}.pt")
    run.device.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
