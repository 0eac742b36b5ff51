"""The optimizer that a recipe names, from timm's factory; what would not act as it is written is
refused.

timm drops `betas` and `eps` where an optimizer has none, takes arguments that only matter where it
makes the groups itself, and checks few values. So every key is held against the signature of the
class that is built, and the finished settings take three steps on a handful of numbers.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, cast

import timm.optim
import torch
from torch import nn
from torch.optim import Optimizer

from trainkit.config.optimizer import OptimizerSpec
from trainkit.config.recipe import Recipe
from trainkit.errors import Problem, RecipeError, first_line, suggest
from trainkit.hooks.run import ParamGroups
from trainkit.optim.lookahead import Lookahead, base_name
from trainkit.seeds import isolated

_ELSEWHERE = {"opt": "name", "lr": "lr", "weight_decay": "weight_decay", "momentum": "momentum"}
_ELSEWHERE |= {"layer_decay": "layer_decay"}
_ELSEWHERE |= {"layer_decay_min_scale": "layer_decay_min_scale"}
_ELSEWHERE |= {"layer_decay_no_opt_scale": "layer_decay_no_opt_scale", "fallback_list": "fallback"}
_OF_GROUPS = (
    "params",
    "model_or_params",
    "param_group_fn",
    "filter_bias_and_bn",
    "weight_decay_exclude_1d",
    "fallback_no_weight_decay",
)
_SHARES = ("betas", "betas_1d")  # each of them is the share of an average that a step keeps
_SWITCHES = ("foreach", "fused")  # None leaves the choice to torch
_MOST_ROUNDS = 100  # of an inner iteration; muon takes 5


def build_optimizer(
    groups: ParamGroups, recipe: Recipe, lr: float, device: torch.device
) -> Optimizer:
    """Return timm's optimizer of the recipe over `groups`, with the peak learning rate `lr`.

    Raises:
        RecipeError: a setting would do nothing, or cannot be used.
    """
    spec, where = recipe.optimizer, recipe.raw.nearest
    try:
        problems = _problems(recipe)
    except (ImportError, AssertionError) as error:  # apex and bitsandbytes
        problems = [
            Problem(
                where("optimizer", "name"),
                "optimizer.name",
                f"{spec.name} is not here: {first_line(error)}",
            )
        ]
    if problems:
        raise RecipeError(problems)
    try:
        wrong = ""
        if spec.args:
            wrong = _trial(spec, lr, device)
        if not wrong:
            return _create(groups, spec, lr)
    except Exception as error:  # an argument of the wrong kind may raise anything
        wrong = first_line(error)
    message = f"{spec.name} does not take these arguments: {wrong}"
    raise RecipeError([Problem(where("optimizer", "args"), "optimizer", message)])


def _create(groups: Any, spec: OptimizerSpec, lr: float) -> Optimizer:
    arguments: dict[str, Any] = dict(spec.args)
    name = base_name(spec.name)
    if timm.optim.get_optimizer_info(name).has_momentum:
        arguments["momentum"] = spec.momentum
    made = timm.optim.create_optimizer_v2(
        groups, opt=name, lr=lr, weight_decay=spec.weight_decay, **arguments
    )
    if name != spec.name:
        made = Lookahead(made)
    return cast(Optimizer, made)


def _problems(recipe: Recipe) -> list[Problem]:
    """Return the settings that the optimizer does not have, or that have no place or value
    there.
    """
    spec = recipe.optimizer
    info = timm.optim.get_optimizer_info(base_name(spec.name))
    made = timm.optim.get_optimizer_class(base_name(spec.name), bind_defaults=False)
    known = dict(inspect.signature(made).parameters)
    for name, has in (
        ("betas", info.has_betas),
        ("eps", info.has_eps),
        ("momentum", info.has_momentum),
    ):
        if not has:
            known.pop(name, None)
    problems = []
    # A resolved recipe writes every default out, also where the optimizer has no momentum.
    if not info.has_momentum and spec.momentum != OptimizerSpec.model_fields["momentum"].default:
        message = f"{spec.name} has no momentum of this kind; leave it out"
        problems.append(
            Problem(recipe.raw.nearest("optimizer", "momentum"), "optimizer.momentum", message)
        )
    for name, value in spec.args.items():
        if name in _ELSEWHERE:
            key, wrong = f"optimizer.args.{name}", f"say it as optimizer.{_ELSEWHERE[name]}"
        elif name in _OF_GROUPS:
            key = f"optimizer.args.{name}"
            wrong = (
                "the parameter groups are made before the optimizer, which does not ask for it; "
                "leave it out"
            )
        elif name not in known:
            offered = []
            for n in known:
                if n not in ("params", *_ELSEWHERE):
                    offered.append(n)
            near = suggest(name, offered) or f"; it takes: {', '.join(offered)}"
            key, wrong = "optimizer", f"{spec.name} does not take these arguments: {name!r}{near}"
        else:
            key, wrong = f"optimizer.args.{name}", _wrong_value(name, value, known[name].default)
        if wrong:
            problems.append(Problem(recipe.raw.nearest("optimizer", "args", name), key, wrong))
    return problems


def _wrong_value(name: str, value: Any, default: Any) -> str:
    """Return what is wrong with an argument's value, as far as its default shows of which kind
    it must be.
    """
    if isinstance(default, bool) or name in _SWITCHES:
        if isinstance(value, bool):
            return ""
        return f"should be true or false; got {value!r}"
    if name in _SHARES or isinstance(default, tuple):
        count = 2
        if isinstance(default, tuple):
            count = len(default)
        numbers = []
        if isinstance(value, list | tuple):
            numbers = list(value)
        right = len(numbers) == count and all(map(_is_number, numbers))
        if right and name in _SHARES:
            right = all(0 <= v < 1 for v in numbers)
        form = f"{count} numbers" + (", each at least 0 and below 1" if name in _SHARES else "")
        if right:
            return ""
        return f"should be {form}; got {value!r}"
    if isinstance(default, int | float) and not _is_number(value):
        return f"should be a finite number; got {value!r}"
    if name == "eps" and value is not None and not (_is_number(value) and value >= 0):
        return f"should be a number of at least 0; got {value!r}"
    if name == "ns_steps" and value > _MOST_ROUNDS:
        return f"should be at most {_MOST_ROUNDS}; got {value!r}"
    return ""


def _is_number(value: Any) -> bool:
    try:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
    except OverflowError:  # an integer that no float holds
        return False


def _trial(spec: OptimizerSpec, lr: float, device: torch.device) -> str:
    """Take three steps along a constant gradient; return what is wrong with where they lead, if
    anything.
    """
    shapes = (
        (64, 32),
        (32,),
        (32, 16, 3, 3),
    )  # large enough for what is factored or made orthogonal
    params = []
    for s in shapes:
        params.append(nn.Parameter(torch.linspace(0.5, 1.0, math.prod(s), device=device).view(s)))
    before = sum(float(p.detach().sum()) for p in params)
    with isolated(0, device), torch.compiler.set_stance("force_eager"):
        optimizer = _create([{"params": params}], spec, lr)
        for _ in range(3):
            for p in params:
                p.grad = torch.full_like(p, 0.1)
            optimizer.step()
    after = sum(float(p.detach().sum()) for p in params)
    if not math.isfinite(after):
        return "three steps on a handful of numbers give no finite ones"
    if after > before + 1e-4:
        return "its steps raise the loss"
    return ""
