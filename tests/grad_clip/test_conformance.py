from trainkit_plugins.grad_clip.plugin import GradClip, SmoothnessMonitor

from trainkit.testing import Case, parametrize


@parametrize(
    Case(GradClip, {"mode": "value", "max_value": 0.01}),
    Case(GradClip, {"mode": "adaptive"}),
    # Next to plugins that draw and mix while the loss is being measured.
    Case(
        SmoothnessMonitor,
        {"every": 1},
        recipe={"plugins": {"mixup": {}, "ema": {}, "grad_clip": {}}},
    ),
    Case(
        SmoothnessMonitor, {"every": 1, "points": 2, "batch": 20}, recipe={"plugins": {"mixup": {}}}
    ),
)
def test_conformance(check):
    check()
