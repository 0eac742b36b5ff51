"""The room's plugins: what they build, log and draw."""

import pytest
import torch
from pydantic import ValidationError
from trainkit_plugins.radam import optimizers, rectification, rho
from trainkit_plugins.radam.plugin import Adam2k, AdamEps, AdamWarmup, RAdam, RAdamMonitor

from tests.reference.tiny import train, with_plugins
from trainkit import History, Record, Run
from trainkit.config.recipe import Recipe
from trainkit.log.records import Log
from trainkit.training.build import build

STEPS = range(1, 13)
"""Those of the tiny recipe."""


@pytest.fixture
def run():
    """A run that has a recipe and a log, which is what the optimizers read."""
    recipe = Recipe.model_validate(
        {
            "model": {"name": "test_vit"},
            "data": {"name": "digits"},
            "optimizer": {"lr": 2e-3, "weight_decay": 0.1},
        }
    )
    return Run(recipe, hook=None, plugins={}, device=None, log=Log())


def groups():
    decay, keep = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    return [
        {
            "params": [decay],
            "weight_decay": 0.3,
            "name": "decay",
            "rule": "matrices",
            "lr_scale": 0.5,
        },
        {"params": [keep], "weight_decay": 0.0, "name": "no_decay"},
    ]


@pytest.mark.parametrize(
    ("plugin", "kind", "settings"),
    [
        (RAdam(unrectified="skip"), optimizers.RAdam, {"unrectified": "skip"}),
        (AdamWarmup(warmup_steps=7), optimizers.AdamWarmup, {"warmup_steps": 7}),
        (Adam2k(), optimizers.Adam2k, {"freeze_steps": 2000}),
        (AdamEps(), optimizers.AdamEps, {"eps": 1e-4}),
    ],
)
def test_optimizers_keep_what_the_groups_say(run, plugin, kind, settings):
    optimizer = plugin.build_optimizer(groups(), run)
    assert type(optimizer) is kind
    decay, keep = optimizer.param_groups
    assert (decay["weight_decay"], keep["weight_decay"]) == (0.3, 0.0)
    assert (decay["lr_scale"], decay["name"], decay["rule"]) == (0.5, "decay", "matrices")
    assert decay["lr"] == keep["lr"] == 2e-3
    assert settings.items() <= decay.items()
    assert decay["decoupled_weight_decay"]


def test_options_reach_the_optimizer(run):
    plugin = RAdam(lr=0.5, betas=(0.8, 0.95), eps=1e-3)
    settings = plugin.build_optimizer(groups(), run).defaults
    assert (settings["lr"], settings["betas"], settings["eps"]) == (0.5, (0.8, 0.95), 1e-3)


def test_unused_arguments_of_the_recipes_optimizer_are_mentioned(run):
    run.recipe.optimizer.args["betas"] = [0.9, 0.99]
    plugin = RAdam()
    plugin.bind("radam", 0)
    plugin.build_optimizer(groups(), run)
    assert run.log.notes == ["radam takes the place of adamw: optimizer.args are not used"]


@pytest.mark.parametrize(
    ("plugin", "options"),
    [
        (RAdam, {"lr": 0.0}),
        (RAdam, {"betas": (0.9, 1.0)}),
        (RAdam, {"betas": (-0.1, 0.9)}),
        (RAdam, {"eps": -1.0}),
        (RAdam, {"unrectified": "adam"}),
        (AdamWarmup, {"warmup_steps": -1}),
        (Adam2k, {"freeze_steps": -1}),
        (RAdamMonitor, {"every": 0}),
        (RAdamMonitor, {"sample": 0}),
        (RAdamMonitor, {"first": -1}),
    ],
)
def test_options_out_of_range_are_refused(plugin, options):
    (name,) = options
    with pytest.raises(ValidationError, match=name):
        plugin(**options)


def history_of(run):
    return History.read(run.folder / "metrics.jsonl")


def test_explain_says_how_long_the_warm_up_is(tiny):
    run = build(with_plugins(tiny, [], RAdam()))
    lines = "\n".join(RAdam().explain(run))
    assert "takes the place of adamw; lr 0.002 (optimizer.lr)" in lines
    assert "the schedule warms up too, for 1 epochs" in lines
    assert (
        "momentum SGD before step 6; r_t reaches 0.5 at step 556 and 0.9 at step 2737, and this run"
        " has 12" in lines
    )
    short = "\n".join(RAdam(lr=0.1, betas=(0.9, 0.6), unrectified="skip").explain(run))
    assert "lr 0.1," in short
    assert "rho_inf = 4 is not above 5: no update for the whole run" in short


def test_the_monitor_is_invisible_and_logs_what_it_sees(tiny, tmp_path):
    plain, _ = train(with_plugins(tiny, [], RAdam()))
    monitor = RAdamMonitor(first=7, every=3, sample=1000)
    watched, _ = train(with_plugins(tiny, [], RAdam(), monitor), tmp_path)
    assert all(
        map(torch.equal, plain.model.state_dict().values(), watched.model.state_dict().values())
    )

    history = history_of(watched)
    steps, lengths = history.series("radam_monitor/rho")
    assert steps == [1, 2, 3, 4, 5, 6, 7, 9, 12]
    assert lengths == pytest.approx([rho(t, 0.999) for t in steps])
    steps, r = history.series("radam_monitor/r")
    assert steps == [6, 7, 9, 12]
    assert r == pytest.approx([rectification(t, 0.999) for t in steps])
    steps, shares = history.series("radam_monitor/gradient_exponents")
    assert steps == [1, 2, 3, 4, 5, 6, 7]
    assert all(sum(share) == pytest.approx(1.0, abs=1e-5) for share in shares)
    _, rates = history.together(
        "radam_monitor/rate_p05", "radam_monitor/rate_p50", "radam_monitor/rate_p95"
    )
    assert all(0 < low <= middle <= high for low, middle, high in rates)


def test_the_monitor_watches_the_recipes_own_optimizer(tiny, tmp_path):
    adamw, _ = train(with_plugins(tiny, [], RAdamMonitor()), tmp_path)
    assert history_of(adamw).series("radam_monitor/rate_p50")[0] == list(STEPS)


def test_the_monitor_says_what_it_cannot_see(tiny, tmp_path):
    sgd, _ = train(with_plugins(tiny, ["optimizer.name=sgd"], RAdamMonitor()), tmp_path)
    assert sgd.log.notes == [
        "radam_monitor: SGD has no adaptive learning rate, so that only gradients are logged"
    ]
    assert history_of(sgd).series("radam_monitor/rho")[0] == []
    assert history_of(sgd).series("radam_monitor/gradient_exponents")[0] == list(STEPS)


def test_radam_in_a_run_takes_the_steps_of_torchs(tiny):
    """Layer decay scales each group's rate and the schedule moves it; torch's RAdam through timm
    does the same.
    """
    ours, _ = train(with_plugins(tiny, ["optimizer.layer_decay=0.7"], RAdam()))
    theirs, _ = train(with_plugins(tiny, ["optimizer.layer_decay=0.7", "optimizer.name=radamw"]))
    assert type(ours.optimizer) is optimizers.RAdam
    assert type(theirs.optimizer) is torch.optim.RAdam
    assert len({group["lr_scale"] for group in ours.optimizer.param_groups}) > 3
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_report_draws_what_was_logged():
    names = ("p05", "p25", "p50", "p75", "p95")
    records = [
        Record(
            step,
            0,
            {f"radam_monitor/rate_{name}": 10.0 + i for i, name in enumerate(names)}
            | {
                "radam_monitor/r": 0.1 * step,
                "radam_monitor/gradient_exponents": [0.5, 0.0, 0.2, 0.3, 0.0],
            },
        )
        for step in range(1, 6)
    ]
    rates, gradient = RAdamMonitor().report(History(records))
    (left, right), (axes, _) = rates.figures[0].axes, gradient.figures[0].axes
    assert list(left.lines[0].get_ydata()) == [12.0] * 5
    assert list(right.lines[0].get_ydata()) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    (image,) = axes.images
    assert image.get_array().tolist() == [[0.2] * 5, [0.3] * 5]
    # Entry 2 of the histogram counts 2^-39 <= |g| < 2^-38.
    assert image.get_extent() == [0.5, 5.5, -39, -37]
    assert RAdamMonitor().report(History([])) == []
