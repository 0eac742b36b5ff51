from trainkit_plugins.sparsity_norm.monitor import SparsityBiasMonitor
from trainkit_plugins.sparsity_norm.plugin import SparsityNormalization

from trainkit.testing import Case, parametrize


# tests/testing/test_installed.py has the defaults. The kit's digits have no gaps; with gaps a run
# without the plugin is refused, so test_plugin.py has those cases.
@parametrize(
    Case(SparsityNormalization, {"method": "zero_and_mask", "mask": "pixel"}),
    Case(SparsityNormalization, {"k": 100.0, "per": "channel", "center": False}),
    Case(SparsityBiasMonitor, recipe={"plugins": {"mixup": {}, "ema": {}}}),
    Case(SparsityBiasMonitor, {"output": "logit", "points": 5}),
)
def test_conformance(check):
    check()
