"""Which parameters an optimizer for hidden matrices leaves to a second rule: Muon's fallback.

timm's Muon makes every update of a matrix orthogonal whose shape allows it, a classifier and a
patch embedding among them, unless their group has `use_fallback`. Its author means hidden layers
alone: https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

from fnmatch import fnmatch

import timm.optim
from torch import nn

from trainkit.config.recipe import Recipe
from trainkit.errors import Problem, RecipeError, suggest
from trainkit.models.anatomy import classifiers, exempt_names, first_layers
from trainkit.optim.lookahead import base_name

_DEFAULT = "the classifier, the layer that reads the input, embeddings and depthwise kernels"


def has_fallback(name: str) -> bool:
    """Return whether the optimizer of this name in a recipe has a second rule."""
    kind = timm.optim.get_optimizer_info(base_name(name)).opt_class
    return isinstance(kind, type) and issubclass(kind, timm.optim.Muon)


def fallback_of(model: nn.Module, recipe: Recipe) -> tuple[frozenset[str], str]:
    """Return the names of the parameters that the second rule moves, and what they are in words.

    None for an optimizer that has no second rule. The patterns of `optimizer.fallback` are those of
    file names, as timm reads them.

    Raises:
        RecipeError: the optimizer has no second rule, or a pattern fits no parameter.
    """
    spec, where = recipe.optimizer, recipe.raw.nearest
    if not has_fallback(spec.name):
        if spec.fallback is None:
            return frozenset(), ""
        wrong = f"{spec.name} has one rule for all parameters; leave it out"
        raise RecipeError([Problem(where("optimizer", "fallback"), "optimizer.fallback", wrong)])
    if spec.fallback is None:
        return frozenset(_by_role(model)), _DEFAULT
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    problems = []
    for i, pattern in enumerate(spec.fallback):
        fit = [name for name in names if fnmatch(name, pattern)]
        found.update(fit)
        if not fit:
            near = (
                suggest(pattern, names) or f", such as {names[-1]!r}; they are patterns, as head.*"
            )
            wrong = f"no parameter is called {pattern!r}{near}"
            key = f"optimizer.fallback.{i}"
            problems.append(Problem(where("optimizer", "fallback", i), key, wrong))
    if problems:
        raise RecipeError(problems)
    return frozenset(found), ", ".join(spec.fallback)


def _by_role(model: nn.Module) -> set[str]:
    found = exempt_names(model)  # position embeddings, tokens
    ends = [f"{layer}." for layer in (*classifiers(model), *first_layers(model))]
    for layer, module in model.named_modules():
        depthwise = (
            isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
            and module.groups == module.in_channels > 1
        )
        if depthwise or isinstance(module, nn.Embedding):
            ends.append(f"{layer}.")
    for name, _ in model.named_parameters():
        if name.startswith(tuple(ends)):
            found.add(name)
    return found
