"""What the network of a few-shot recipe does without meta-learning, on the recipe's own test tasks.

Run: python benchmarks/few_shot_baselines.py recipes/maml_glyphs.yaml [override …] --task 1 1.jsonl
    --task 5 5.jsonl

Arms: nearest class centroid on pixels; the recipe's network pre-trained to tell all training
classes apart (plain classification, every image of them), then nearest centroid on its features, or
fine-tuning on each task's support images with a new classifier that starts at zero, of the
classifier alone or of all parameters but the norms; and the same fine-tuning of a network that was
never trained. Step size and number of steps of each kind of fine-tuning are those that do best on
tasks of the validation classes. Batch norms use the batch's own statistics throughout, as in the
meta-learned arms.

`--task` names a number of shots and the file to which every arm is appended, with its accuracy on
each test task, for `few_shot_study.py` to put beside others. Pre-training is the same for all of
them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainkit_data.few_shot import ClassPool, class_pool
from trainkit_plugins.maml import InnerLoop, isolate, plan_for, predict, trajectory
from trainkit_plugins.maml.episodes import Episode, EpisodeSampler

from trainkit import Batch
from trainkit.training.build import Setup, compose

LEARNING_RATES = {"head": (0.1, 0.3, 1.0, 3.0, 10.0), "all": (0.1, 0.3, 1.0)}
STEPS = {"head": (1, 3, 5, 10, 20, 50, 100), "all": (5, 10, 20, 50)}
BATCH = 128


def images_of(pool: ClassPool) -> Batch:
    """Return every image of a pool."""
    return pool.batch(range(len(pool)), [range(size) for size in pool.sizes])


def pretrain(model: nn.Module, data: Batch, epochs: int, seed: int) -> None:
    """Train a classifier with AdamW and a cosine schedule."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
    steps = len(data.targets) // BATCH
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for epoch in range(epochs):
        order = torch.randperm(len(data.targets), generator=generator)
        right = 0
        for index in order[: steps * BATCH].view(steps, BATCH):
            logits = model(data.inputs[index])
            optimizer.zero_grad()
            F.cross_entropy(logits, data.targets[index]).backward()
            optimizer.step()
            scheduler.step()
            right += int((logits.argmax(1) == data.targets[index]).sum())
        print(
            f"  epoch {epoch + 1}/{epochs}: training accuracy {right / (steps * BATCH):.3f}",
            flush=True,
        )


def centroid(episode: Episode[Batch], embed: Callable[[Tensor], Tensor]) -> float:
    """Return the accuracy of giving each query image the class whose mean support embedding is
    nearest.
    """
    support, query = (embed(batch.inputs).flatten(1) for batch in episode)
    ways = int(episode.support.targets.max()) + 1
    centres = torch.stack([support[episode.support.targets == way].mean(0) for way in range(ways)])
    return accuracy(-torch.cdist(query, centres), episode.query.targets)


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Return the share of logits [N, ways] that are highest at the target."""
    return (logits.argmax(1) == targets).float().mean().item()


def fine_tuned(
    model: nn.Module, which: str, lr: float, steps: tuple[int, ...], episode: Episode[Batch]
) -> Iterator[float]:
    """Yield the accuracy on the query images after each of some numbers of steps of gradient
    descent, in order.
    """
    support, query = episode
    if which == "head":  # the features stay as they are: work them out once
        with torch.no_grad():
            support, query = (
                Batch(features(model, images), targets) for images, targets in episode
            )
        model = model.get_classifier()  # type: ignore[operator]
    loop = InnerLoop(steps[-1], second_order=False)
    plan = plan_for(model, lr)
    for k, params in enumerate(trajectory(model, plan, support, loop, differentiable=False)):
        if k in steps:
            with torch.no_grad():
                yield accuracy(predict(model, params, query.inputs), query.targets)


def best_setting(model: nn.Module, which: str, episodes: list[Episode[Batch]]) -> tuple[float, int]:
    """Return the step size and the number of steps that do best on validation tasks."""
    found = {}
    for lr in LEARNING_RATES[which]:
        means = torch.tensor(
            [list(fine_tuned(model, which, lr, STEPS[which], e)) for e in episodes]
        ).mean(0)
        found |= {(lr, steps): float(mean) for steps, mean in zip(STEPS[which], means, strict=True)}
    best = max(found, key=lambda setting: found[setting])
    print(
        f"  {which}: step size {best[0]:g}, {best[1]} steps: {found[best]:.4f} in validation",
        flush=True,
    )
    return best


class Bench:
    """The tasks of a recipe with some number of shots, and the file in which results are kept.

    Args:
        setup: the recipe.
        shots: instead of the recipe's.
        out: the file.
        val_episodes: tasks of the validation classes on which fine-tuning is tuned.
    """

    def __init__(self, setup: Setup, shots: int, out: Path, val_episodes: int) -> None:
        self.shots, self.out = shots, out
        maml = options_of(setup)
        self.ways = maml.ways
        sampler = EpisodeSampler(maml.ways, maml.queries, shots=shots)
        val, test = (class_pool(setup.recipe, split) for split in ("validation", "test"))
        # The names in the keys are those under which the plugin draws its own fixed tasks.
        self.tasks = [sampler.episode(test, "test", number) for number in range(maml.test_episodes)]
        self.tuning = [sampler.episode(val, "val", number) for number in range(val_episodes)]

    def write(
        self, arm: str, seed: int, measure: Callable[[Episode[Batch]], float], **more: Any
    ) -> None:
        """Measure an arm on every test task, and keep what was found."""
        start = time.perf_counter()
        found = [measure(task) for task in self.tasks]
        row = {"arm": arm, "seed": seed, "shots": self.shots, "accuracies": {"test": found}, **more}
        row["seconds"] = round(time.perf_counter() - start + more.get("pretraining", 0.0), 1)
        with self.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{self.shots} shot(s): {arm}, seed {seed}: {sum(found) / len(found):.4f}", flush=True
        )

    def fine_tune(self, kind: str, model: nn.Module, seed: int, **more: Any) -> None:
        """Measure both kinds of fine-tuning, each with its best setting."""
        model.reset_classifier(self.ways)  # type: ignore[operator]
        for parameter in model.get_classifier().parameters():  # type: ignore[operator]
            nn.init.zeros_(parameter)
        twin = isolate(model)
        for which, name in (("head", "classifier fine-tuned"), ("all", "fine-tuned")):
            lr, steps = best_setting(twin, which, self.tuning)

            def measure(
                task: Episode[Batch], which: str = which, lr: float = lr, steps: int = steps
            ) -> float:
                return next(fine_tuned(twin, which, lr, (steps,), task))

            self.write(f"{kind}, {name}", seed, measure, lr=lr, steps=steps, **more)

    def centroids(self, arm: str, model: nn.Module | None, seed: int, **more: Any) -> None:
        """Measure nearest centroid on a network's features, or on pixels."""
        twin = None if model is None else isolate(model)

        def embed(images: Tensor) -> Tensor:
            return images if twin is None else features(twin, images)

        with torch.no_grad():
            self.write(f"{arm}, nearest centroid", seed, lambda task: centroid(task, embed), **more)


def options_of(setup: Setup) -> Any:
    """Return the options of the recipe's `maml`."""
    return next(entry.plugin for entry in setup.entries if entry.name == "maml")


def features(model: Any, images: Tensor) -> Tensor:
    """Return what the classifier gets [N, D]."""
    found: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    return found


def make(setup: Setup, classes: int, seed: int, size: int) -> nn.Module:
    """Return a new network of the recipe's."""
    torch.manual_seed(seed)
    spec = setup.recipe.model
    args = {"in_chans": spec.in_chans, "img_size": size, **spec.args}
    made: nn.Module = timm.create_model(spec.name, num_classes=classes, **args)
    return made.train()


def main() -> None:
    """Measure every arm."""
    parser = argparse.ArgumentParser(description="Few-shot accuracy without meta-learning.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument(
        "--task", nargs=2, action="append", required=True, metavar=("SHOTS", "FILE")
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10, help="of pre-training")
    parser.add_argument(
        "--val-episodes", type=int, default=40, help="tasks on which fine-tuning is tuned"
    )
    options = parser.parse_intermixed_args()
    setup = compose(options.recipe, options.overrides)
    train = class_pool(setup.recipe, "train")
    data, size = images_of(train), train.shape[-1]
    benches = [
        Bench(setup, int(shots), Path(out), options.val_episodes) for shots, out in options.task
    ]
    print(
        f"{len(train)} training classes, {len(data.targets):,} images; {len(benches[0].tasks)} test"
        " tasks",
        flush=True,
    )
    for bench in benches:
        bench.centroids("pixels", None, 0)
    for seed in options.seeds:
        model = make(setup, len(train), seed, size)
        start = time.perf_counter()
        pretrain(model, data, options.epochs, seed)
        more = {"pretraining": round(time.perf_counter() - start, 1), "epochs": options.epochs}
        for bench in benches:
            bench.centroids("pre-trained", model, seed, **more)
            bench.fine_tune("pre-trained", model, seed, **more)
    for bench in benches:
        bench.fine_tune("untrained", make(setup, bench.ways, 0, size), 0)


if __name__ == "__main__":
    main()
