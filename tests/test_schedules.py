"""Schedules: each fits the run, says what in it never happens, and refuses what it has no use
for.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from trainkit.errors import UserError
from trainkit.hooks.run import Run
from trainkit.training.build import build, compose

STEPS = 6  # of the tiny recipe in an epoch
PEAK = 2e-3


def run_of(tiny: Path, name: str, args: str = "{}", *overrides: str, warmup: float = 0) -> Run:
    said = [f"scheduler.name={name}", f"scheduler.args={args}", f"scheduler.warmup_epochs={warmup}"]
    return build(compose(tiny, [*said, *overrides]))


def rates(run: Run) -> list[float]:
    """Return the learning rate of every step, as the loop would have it."""
    found = []
    for step in range(run.recipe.train.epochs * STEPS):
        found.append(max(group["lr"] for group in run.optimizer.param_groups))
        run.scheduler.step_update(step + 1)
    return found


def refusal(tiny: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        build(compose(tiny, ["scheduler.warmup_epochs=0", *overrides]))
    return str(caught.value)


# The length of the run.


@pytest.mark.parametrize("name", ["cosine", "tanh", "poly"])
def test_a_prefixed_warmup_leaves_the_rest_of_the_run_to_the_whole_decay(
    tiny: Path, name: str
) -> None:
    found = rates(run_of(tiny, name, "{warmup_prefix: true}", "train.epochs=4", warmup=2))
    alone = rates(run_of(tiny, name, "{}", "train.epochs=2"))
    assert found[2 * STEPS :] == pytest.approx(
        [PEAK if name == "tanh" else alone[0], *alone[1:]], rel=1e-6
    )
    assert found[:3] == pytest.approx([1e-6 + t * (PEAK - 1e-6) / 12 for t in range(3)])


@pytest.mark.parametrize("name", ["cosine", "tanh", "poly", "wsd", "rsqrt"])
def test_a_cooldown_holds_the_lowest_rate_to_the_end(tiny: Path, name: str) -> None:
    changes = ["train.epochs=5", "scheduler.min_lr=1e-4"]
    found = rates(run_of(tiny, name, "{cooldown_epochs: 2}", *changes, warmup=1))
    assert found[3 * STEPS :] == [1e-4] * (2 * STEPS)
    assert min(found[STEPS : 3 * STEPS]) > 1e-4


def test_all_cycles_take_place_within_the_run(tiny: Path) -> None:
    found = rates(run_of(tiny, "cosine", "{cycle_limit: 3, cycle_decay: 0.5}", "train.epochs=3"))
    assert [found[0], found[STEPS], found[2 * STEPS]] == [PEAK, PEAK / 2, PEAK / 4]
    longer = rates(
        run_of(tiny, "cosine", "{cycle_limit: 2, cycle_mul: 2, cycle_decay: 1}", "train.epochs=3")
    )
    assert [t for t in range(1, 18) if longer[t] > longer[t - 1]] == [STEPS]


def test_noise_begins_at_its_share_of_the_run(tiny: Path) -> None:
    plain = rates(run_of(tiny, "cosine", "{warmup_prefix: true}", "train.epochs=4", warmup=2))
    noisy = rates(
        run_of(tiny, "cosine", "{warmup_prefix: true, noise: 0.75}", "train.epochs=4", warmup=2)
    )
    assert [a == b for a, b in zip(plain, noisy, strict=True)] == [True] * 18 + [False] * 6


# What never happens.


@pytest.mark.parametrize(
    ("name", "args", "note"),
    [
        (
            "multistep",
            "{decay_milestones: [30, 60]}",
            "decay_milestones: 30, 60 after the end, this run has 2 epochs",
        ),
        (
            "multistep",
            "{decay_milestones: [1, 60]}",
            "decay_milestones: 60 after the end, this run has 2 epochs: they",
        ),
        ("multistep", "{}", "decay_milestones: 90, 180, 270 (timm's default) after the end"),
        (
            "step",
            "{decay_epochs: 5}",
            "decay_epochs: the rate first falls after 5 epochs, and this run has 2",
        ),
        ("step", "{}", "decay_epochs: the rate first falls after 90 (timm's default) epochs"),
        ("cosine", "{noise: 0.999}", "noise: begins at 0.999 of the run, where no step is left"),
    ],
)
def test_what_comes_after_the_end_is_noted_before_training(
    tiny: Path, name: str, args: str, note: str
) -> None:
    run = run_of(tiny, name, args)
    (found,) = run.log.notes
    assert note in found
    if "never falls" in note:
        assert set(rates(run)) == {PEAK}


@pytest.mark.parametrize(("milestone", "falls"), [("1.9", True), ("2", True), ("2.1", False)])
def test_a_milestone_counts_if_the_last_step_still_feels_it(
    tiny: Path, milestone: str, falls: bool
) -> None:
    run = run_of(tiny, "multistep", f"{{decay_milestones: [{milestone}]}}")
    found = rates(run)
    assert (found[-1] < PEAK) == falls == (not run.log.notes)


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (["scheduler.warmup_lr=1e-4"], "scheduler.warmup_lr: does nothing without warmup_epochs"),
        (
            ["scheduler.args.warmup_prefix=true"],
            "scheduler.args.warmup_prefix: does nothing without warmup_epochs",
        ),
        (
            ["scheduler.name=constant", "scheduler.min_lr=1e-4"],
            "scheduler.min_lr: does nothing, because constant",
        ),
        (["scheduler.name=constant", "scheduler.warmup_epochs=3"], "the peak is never reached"),
    ],
)
def test_options_that_wait_for_others_are_noted(
    tiny: Path, overrides: list[str], note: str
) -> None:
    (found,) = build(compose(tiny, ["scheduler.warmup_epochs=0", *overrides])).log.notes
    assert note in found


def test_a_schedule_that_does_all_it_says_has_no_notes(tiny: Path) -> None:
    assert run_of(tiny, "multistep", "{decay_milestones: [1, 2]}").log.notes == []
    assert run_of(tiny, "cosine", "{warmup_prefix: true}", warmup=1).log.notes == []


# What is refused.


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            "{decay_milestones: [1]}",
            "args.decay_milestones: cosine has no use for it, only multistep; leave it out",
        ),
        (
            "{stable_timescale: 1}",
            "args.stable_timescale: cosine has no use for it, only rsqrt; leave it out",
        ),
        (
            "{patience_epochs: 1}",
            "args.patience_epochs: it is of plateau, which is not offered here; leave it out",
        ),
        ("{min_lr: 0}", "args.min_lr: say it as scheduler.min_lr"),
        ("{num_epochs: 5}", "args.num_epochs: say it as train.epochs"),
        (
            "{updates_per_epoch: 5}",
            "args.updates_per_epoch: the data say how many there are; leave it out",
        ),
        ("{cycle_mul: 2}", "cycle_mul do nothing in a single cycle"),
        ("{noise_std: 2}", "noise_std do nothing without noise"),
        ("{noise: 0.5, noise_pct: 1e-12}", "timm draws until the noise is within noise_pct"),
        ("{noise: [0.1, 0.2, 0.3]}", "args.noise: "),
        ("{k_decay: 0}", "args.k_decay: should be greater than 0; got 0"),
        ("{k_decay: 1000000000000}", "timm cannot make cosine: "),
        (
            "{cycle_limit: 1000000000000}",
            "timm cannot make cosine: of 1000000000000 cycles in 12 steps one is shorter",
        ),
        (
            "{cycle_limit: 2, cycle_mul: 1000000000000}",
            "timm cannot make cosine: of 2 cycles in 12 steps",
        ),
        (
            "{cooldown_epochs: 2}",
            "scheduler.warmup_epochs: 0.0 and a cooldown of 2 leaves none of 2 epochs",
        ),
        ("{warmup_prefix: soon}", "args.warmup_prefix: should be a valid boolean"),
    ],
)
def test_arguments_without_use_or_sense_are_refused_by_name(
    tiny: Path, args: str, message: str
) -> None:
    found = refusal(tiny, f"scheduler.args={args}")
    assert message in found
    assert found.startswith("command line `scheduler.")
    assert "\n" not in found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["scheduler.min_lr=0.1"],
            "scheduler.min_lr: 0.1 is above the peak of 0.002: the rate would rise to it",
        ),
        (
            ["scheduler.warmup_epochs=1", "scheduler.warmup_lr=0.1"],
            "scheduler.warmup_lr: 0.1 is above the peak of 0.002: the rate would fall to it",
        ),
        (
            ["scheduler.min_lr=1e-4", "scheduler.args={cycle_limit: 3, cycle_decay: 0.01}"],
            (
                "scheduler.args.cycle_decay: the last cycle would begin at 2e-07, below "
                "scheduler.min_lr"
            ),
        ),
        (
            ["scheduler.name=rsqrt"],
            "scheduler.name: rsqrt takes its time scale from the warm-up; set",
        ),
        (
            ["scheduler.name=wsd", "scheduler.args.decay_epochs=5"],
            "scheduler: timm cannot make wsd: wsd schedule requires 0 < decay_epochs <= epochs",
        ),
        (
            ["scheduler.name=wsd", "scheduler.args.warmup_prefix=true"],
            "wsd begins after the warm-up in any case",
        ),
        (
            ["scheduler.name=step", "scheduler.args.decay_rate=2"],
            "args.decay_rate: should be less than 1; got 2",
        ),
        (
            ["scheduler.name=step", "scheduler.args.decay_epochs=0"],
            "args.decay_epochs: should be greater than 0",
        ),
        (
            ["scheduler.name=multistep", "scheduler.args.decay_milestones=[2, 1]"],
            "decay_milestones must be epochs",
        ),
        (
            ["scheduler.name=multistep", "scheduler.args.decay_milestones=[]"],
            "decay_milestones must be epochs",
        ),
        (
            ["scheduler.name=multistep", "scheduler.args.decay_milestones=[one]"],
            "args.decay_milestones.0: should be",
        ),
    ],
)
def test_what_turns_a_schedule_round_or_breaks_it_is_refused(
    tiny: Path, overrides: list[str], message: str
) -> None:
    found = refusal(tiny, *overrides)
    assert message in found
    assert found.startswith("command line `scheduler.")
    assert "\n" not in found


def test_large_numbers_neither_hang_nor_break_a_schedule(tiny: Path) -> None:
    run = run_of(tiny, "poly", "{k_decay: 3, decay_rate: 1000000000000}")
    assert all(math.isfinite(rate) for rate in rates(run))
    assert run_of(tiny, "multistep", "{decay_milestones: [1000000000000]}").log.notes
