"""`learning_to_balance`: MAML with class weights, step multipliers and initial parameters
inferred for each task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from contextlib import nullcontext
from typing import Any, ClassVar, cast

import torch
from pydantic import PrivateAttr
from timm.models import group_parameters
from torch import Tensor, nn

from trainkit import Batch, History, Run, Section, hookimpl

from ..maml.plugin import Maml
from .balance import balance, class_weights, inverse_frequency, multipliers, shots_of
from .encoder import InferenceNetwork
from .layout import Layout, lay_out
from .options import BalanceOptions
from .posterior import Latents, Posterior
from .sections import sections
from .tendencies import multipliers_by_size, weights_by_shots

_CITATION = """\
@inproceedings{lee2020learning,
  title={Learning to Balance: Bayesian Meta-Learning for Imbalanced and Out-of-distribution Tasks},
  author={Lee, Hae Beom and Lee, Hayeon and Na, Donghyun and Kim, Saehoon
          and Park, Minseop and Yang, Eunho and Hwang, Sung Ju},
  booktitle={International Conference on Learning Representations},
  year={2020}
}"""
_NATS = 0.1067
"""Divergence of one latent as initialized: mean 0, deviation ln 2."""


class LearningToBalance(BalanceOptions):
    """Infer from each task's support set what it needs: class weights, step multipliers, modulated
    initial parameters.

    An inference network sees the support images and gives normal posteriors over the latents of
    three balancing variables. In training one draw of them is used and their divergence from the
    prior is added to the task's loss, in validation their mean, in the test several draws whose
    predictions are averaged.
    """

    citation: ClassVar[str] = _CITATION
    neutral: ClassVar[dict[str, Any]] = {"omega": "uniform", "gamma": False, "z": False}
    requires: ClassVar[tuple[str, ...]] = ("maml",)
    after: ClassVar[tuple[str, ...]] = ("maml",)
    before: ClassVar[tuple[str, ...]] = (
        "meta_sgd",
    )  # outermost: multiplies the step sizes that are learned there

    _layout: Layout = PrivateAttr(default_factory=Layout)
    _divergences: dict[str, list[Tensor]] = PrivateAttr(default_factory=dict)
    _seen: dict[str, dict[str, list[Tensor]]] = PrivateAttr(default_factory=dict)
    _now: dict[str, list[Tensor]] = PrivateAttr(default_factory=dict)

    @property
    def _infers(self) -> bool:
        return self.omega == "learned" or self.gamma or self.z

    @hookimpl(wrapper=True)
    def build_model(self, run: Run) -> Generator[None, nn.Module, nn.Module]:
        """Add the inference network as `meta.learning_to_balance`."""
        model = yield
        if not self._infers:
            return model
        self._layout = self._lay_out(model, run)
        channels, *size = run.data.input_size
        # The network starts from the plugin's seed, whatever other plugins draw while the model is
        # built.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.generator().initial_seed())
            try:
                encoder = InferenceNetwork(
                    channels,
                    (size[0], size[1]),
                    max_shot=self._most(run),
                    groups=len(self._layout.labels) if self.gamma else 0,
                    channels=self._layout.channels if self.z else 0,
                    omega=self.omega == "learned",
                )
            except ValueError as error:
                self.refuse(run, "", str(error))
        if not hasattr(model, "meta"):
            model.meta = nn.ModuleDict()
        cast(nn.ModuleDict, model.meta)[self.name] = encoder
        return model

    def _most(self, run: Run) -> int:
        maml = run.plugin(Maml)
        return self.max_shot or maml.max_shot or max(2, maml.shots)

    def _lay_out(self, model: nn.Module, run: Run) -> Layout:
        matcher, classifier = (
            getattr(model, "group_matcher", None),
            getattr(model, "get_classifier", None),
        )
        if matcher is None or classifier is None:
            name = type(model).__name__
            self.refuse(
                run,
                "",
                f"{name} does not say which parameters belong together (timm's group_matcher)",
            )
        backbone = {name for name, _ in model.named_parameters() if not name.startswith("meta.")}
        fine, coarse = (
            {
                n: group
                for n, group in group_parameters(model, matcher(coarse=c), reverse=True).items()
                if n in backbone
            }
            for c in (False, True)
        )
        found = classifier()
        heads = {
            id(p)
            for head in (found if isinstance(found, list | tuple) else [found])
            for p in head.parameters()
        }
        body = [name for name in backbone if id(model.get_parameter(name)) not in heads]
        norms = self.z_layers == "norms"
        grouping = fine if self.groups == "blocks" else coarse
        layout = lay_out(model, grouping, body, norms=norms)
        if self.z_layers == "last_stage":
            last = max((coarse[name] for name in layout.scaled), default=0)
            layout = lay_out(
                model, grouping, [name for name in body if coarse[name] == last], norms=norms
            )
        if self.z and not layout.channels:
            self.refuse(
                run, "", f"{run.recipe.model.name} has nothing that z_layers: {self.z_layers} names"
            )
        return layout

    @hookimpl(wrapper=True)
    def plan_task(
        self, support: Batch, query_size: int, ways: int, phase: str, draw: int, run: Run
    ) -> Generator[None, Any, Any]:
        """Replace what the latents change in the plan, and add their divergence to the task's
        loss.
        """
        plan = yield
        if self.omega == "inverse":
            plan = dataclasses.replace(plan, class_weights=inverse_frequency(support.targets, ways))
        if not self._infers:
            return plan
        encoder = cast(InferenceNetwork, run.model.get_submodule(f"meta.{self.name}"))
        with nullcontext() if phase == "train" else torch.no_grad():
            posterior: Posterior = encoder(support.inputs, support.targets, ways)
            latents = self._latents(posterior, support, phase, draw, run)
            changed = balance(plan.params, plan.step_sizes, latents, self._layout, self.z_scale)
        if phase == "train":
            cost = self._divergence(posterior) * (
                self.kl_weight / (len(support.targets) + query_size)
            )
            changed["penalty"] = cost if plan.penalty is None else plan.penalty + cost
        elif draw == 0:
            self._watch(posterior, support.targets, ways)
        if phase == "test" and self.draws:
            changed["predictive_draws"] = self.draws
        return dataclasses.replace(plan, **changed)

    def _latents(
        self, posterior: Posterior, support: Batch, phase: str, draw: int, run: Run
    ) -> Latents:
        if phase == "validate" or (phase == "test" and not self.draws):
            return posterior.mean()
        seed = run.plugin(Maml).task_seed(self, support, phase, draw, run)
        return posterior.sample(torch.Generator().manual_seed(seed))

    def _divergence(self, posterior: Posterior) -> Tensor:
        parts = posterior.divergences()
        for name, value in parts.items():
            self._divergences.setdefault(name, []).append(value.detach())
        return torch.stack(list(parts.values())).sum()

    def _watch(self, posterior: Posterior, targets: Tensor, ways: int) -> None:
        seen = {"shots": shots_of(targets, ways)}
        if posterior.omega is not None:
            seen["omega"] = class_weights(posterior.omega.mu)
        if posterior.gamma is not None:
            seen["gamma"] = multipliers(posterior.gamma.mu)
        for name, value in seen.items():
            self._now.setdefault(name, []).append(value.detach())

    @hookimpl
    def before_optimizer_step(self, run: Run) -> None:
        """Log the step's divergence of each variable, the mean over its tasks."""
        for name, values in self._divergences.items():
            run.log.record(f"{self.name}/kl_{name}", torch.stack(values).mean())
        self._divergences = {}

    @hookimpl
    def on_evaluate_start(self) -> None:
        """Begin to collect what is inferred from the tasks of a validation."""
        self._seen["validation"] = self._now = {}

    @hookimpl
    def on_test_start(self, name: str) -> None:
        """Begin to collect what is inferred from the tasks of a test."""
        self._seen[name] = self._now = {}

    @hookimpl
    def on_evaluate_end(self, run: Run) -> None:
        """Log how the posterior means went with shots and task size."""
        self._tell(run)

    @hookimpl
    def on_fit_end(self, run: Run) -> None:
        """Log the same of the tests, which maml has just done."""
        self._tell(run)

    def _tell(self, run: Run) -> None:
        for purpose, lists in self._seen.items():
            seen = {name: torch.stack(values) for name, values in lists.items()}
            where = f"{self.name}/{purpose}"
            if "omega" in seen:
                found = weights_by_shots(seen["shots"], seen["omega"], self._most(run))
                for name, value in found._asdict().items():
                    run.log.record(f"{where}/omega_{name}", value)
            if "gamma" in seen:
                sizes, gamma = multipliers_by_size(seen["shots"].sum(1), seen["gamma"])
                run.log.record(f"{where}/size", sizes)
                for label, values in zip(self._layout.labels, gamma.T, strict=True):
                    run.log.record(f"{where}/gamma_{label}", values)
        self._seen = {}

    def explain(self, run: Run) -> list[str]:
        """Say what is inferred, for which layers, and what the divergence costs at the start."""
        lines = [f"class weights: {self.omega}"]
        if not self._infers:
            return lines
        encoder = run.model.get_submodule(f"meta.{self.name}")
        count = sum(p.numel() for p in encoder.parameters())
        dims = {"omega": run.data.num_classes * (self.omega == "learned")}
        if self.gamma:
            dims["gamma"] = len(self._layout.labels)
            lines.append(f"step multipliers: {', '.join(self._layout.labels)}")
        if self.z:
            dims["z"] = self._layout.channels
            layers = len(
                {name.rpartition(".")[0] for name in (*self._layout.scaled, *self._layout.shifted)}
            )
            lines.append(
                f"modulation: {self._layout.channels} channels of weights and biases of {layers} "
                "layers"
            )
        nats = _NATS * sum(dims.values())
        lines.append(
            f"inference network: {count:,} parameters; divergence at the start about {nats:.1f} "
            "nats a task"
        )
        return lines

    def report(self, history: History) -> list[Section]:
        """Show class weights over shots and step multipliers over task size, of the tests or
        else of the validation.
        """
        logged: dict[str, dict[str, Any]] = {}
        for name in history.names:
            plugin, _, rest = name.partition("/")
            if plugin == self.name and "/" in rest:
                purpose, _, what = rest.partition("/")
                logged.setdefault(purpose, {})[what] = history.series(name)[1][-1]
        shown = [purpose for purpose in logged if purpose != "validation"] or list(logged)
        return [section for purpose in shown for section in sections(purpose, logged[purpose])]
