"""Images by class for few-shot tasks, and streams of tasks that are generated."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainkit_data.few_shot.generated import GeneratedEval, GeneratedStream
    from trainkit_data.few_shot.pools import ClassPool, class_pool, target_pool

__all__ = ["ClassPool", "GeneratedEval", "GeneratedStream", "class_pool", "target_pool"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: recipes are checked without torch."""
    if name not in __all__:
        raise AttributeError(f"module 'trainkit_data.few_shot' has no attribute {name!r}")
    home = "generated" if name.startswith("Generated") else "pools"
    found = globals()[name] = getattr(import_module(f"trainkit_data.few_shot.{home}"), name)
    return found
