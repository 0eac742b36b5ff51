"""`maml`: meta-learned initial parameters as a plugin."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from pydantic import PrivateAttr
from torch import Tensor, nn

from trainkit import Batch, Plugin, Run, hookimpl

from .accuracy import episode_accuracies
from .episodic import Episodes
from .head import linear_head
from .hookspecs import MamlHooks
from .inner import InnerLoop, support_loss
from .isolation import META, REFUSED, adapted_names, backbone_names, head_names
from .norms import PerStepNorms, error_of_a_pass, what_forbids
from .operations import explained
from .options import MamlOptions
from .outer import predict_task, step_weights
from .plan import Phase, TaskPlan
from .seeds import seed_of
from .tasks import MetaGradient, Task, Workers, average, deliver, meta_gradient


class Maml(MamlOptions):
    """Learn initial parameters from which a few gradient steps on a few examples make a good
    classifier.

    Data are tasks: some classes, a few images of each to adapt on (support), others to be judged by
    (query). Each optimizer step averages the gradient of the query loss over some tasks, through
    the adaptation itself.
    """

    citation: ClassVar[str] = """\
@inproceedings{finn2017maml,
  title={Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks},
  author={Finn, Chelsea and Abbeel, Pieter and Levine, Sergey},
  booktitle={International Conference on Machine Learning},
  year={2017}
}"""
    hookspecs: ClassVar[type | None] = MamlHooks
    conflicts: ClassVar[Mapping[str, str]] = {
        "mixup": "it mixes the images of a batch, and here a batch is tasks"
    }

    _workers: Workers | None = PrivateAttr(default=None)
    _plan: TaskPlan | None = PrivateAttr(default=None)

    def task_seed(self, plugin: Plugin, support: Batch, phase: str, draw: int, run: Run) -> int:
        """Return the seed of what `plugin` draws for a task.

        It is a function of the recipe's seed, the plugin's name, the support set and, in training,
        the step: the same on whichever rank or micro-batch the task falls, and each time that it is
        validated.
        """
        step = run.step if phase == "train" else 0
        return seed_of((phase, draw, step, plugin.generator().initial_seed()), support.inputs)

    def adapted(self, model: nn.Module) -> tuple[str, ...]:
        """Return the names of the parameters that the inner loop moves."""
        return adapted_names(model, self.adapt)

    @hookimpl(wrapper=True)
    def build_model(self, run: Run) -> Generator[None, nn.Module, nn.Module]:
        """Check that the model can adapt as asked, and give it what the options want."""
        model = yield
        for option, lack in REFUSED.items():
            if getattr(run.recipe.train, option):
                self.refuse(run, option, f"{self.name} {lack}", section="train")
        batch_norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if self.norm_eps is not None:
            for norm in batch_norms:
                norm.eps = self.norm_eps
        if why := what_forbids(self.norm_statistics, run.plugins):
            self.refuse(run, "norm_statistics", why)
        if self.norm_statistics == "running" and any(
            norm.running_mean is None for norm in batch_norms
        ):
            why = f"{run.recipe.model.name} keeps no running averages; choose another"
            self.refuse(run, "norm_statistics", why)
        try:
            if not adapted_names(model, self.adapt):
                self.refuse(run, "adapt", "the model has no such parameters")
            if self.head == "prototypes":
                linear_head(model)
            if self.head != "learned":  # every task makes its own
                for name in head_names(model):
                    nn.init.zeros_(model.get_parameter(name)).requires_grad_(False)
            if self.norm_statistics == "per_step":
                meta = getattr(model, "meta", None) or nn.ModuleDict()
                meta[self.name] = PerStepNorms(model, self.steps)
                model.meta = meta
        except ValueError as error:
            self.refuse(run, "head" if "classif" in str(error) else "norm_statistics", str(error))
        self._try_norms(model, run)
        return model

    def _try_norms(self, model: nn.Module, run: Run) -> None:
        """Refuse norms that would have one value per channel in a task's smallest set."""
        shots = 1 if self.max_shot else self.shots
        size = min(self.ways, self.ways_of("train")) * shots
        inputs = torch.zeros(size, *run.data.input_size, device=run.device.torch)
        if error := error_of_a_pass(model, self.norm_statistics, inputs):
            self._explain(error, run)

    @hookimpl(wrapper=True)
    def build_param_groups(self, model: nn.Module, run: Run) -> Generator[None, Any, Any]:
        """Take the plugins' meta-parameters out of the groups that decay."""
        own = {id(p) for name, p in model.named_parameters() if name.startswith(META)}
        groups = yield
        found = [p for group in groups for p in group["params"] if id(p) in own]
        kept = [
            group | {"params": [p for p in group["params"] if id(p) not in own]} for group in groups
        ]
        if found:
            rule = "what plugins of maml meta-learn beside the model"
            kept.append({"params": found, "weight_decay": 0.0, "name": "meta", "rule": rule})
        return [group for group in kept if group["params"]]

    @hookimpl
    def plan_task(self, params: Mapping[str, Tensor], run: Run) -> TaskPlan:
        """The same plan for every task: the model's parameters and one step size."""
        if self._plan is None:
            names = adapted_names(run.model, self.adapt)
            alpha = torch.tensor(
                self.inner_lr, dtype=params[names[0]].dtype, device=params[names[0]].device
            )
            self._plan = TaskPlan({}, names, dict.fromkeys(names, alpha))
        plan = self._plan
        own = cast(Any, run.model).meta[self.name] if self.norm_statistics == "per_step" else None
        norms = () if own is None else own.mappings()
        return TaskPlan(params, plan.adapt, plan.step_sizes, step_params=norms)

    @hookimpl
    def inner_loss(
        self, model: nn.Module, params: Mapping[str, Tensor], plan: TaskPlan, support: Batch
    ) -> Tensor:
        """Cross entropy on the support set, with the plan's class weights."""
        return support_loss(model, params, plan, support)

    @hookimpl
    def compute_loss(self, model: nn.Module, batch: Episodes, run: Run) -> Tensor:
        """The mean query loss of some tasks, after adapting to each."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        loop = self._loop(run, self.steps)
        found = self._meta_gradient(model, batch, loop, run)
        if loop.scale != 1 and not found.loss.isfinite():
            # An inner gradient overflows at this scale. As with every overflow, the scaler is to
            # skip the step and to lower the scale; the loss is what it is without one.
            with run.untouched():
                found = self._meta_gradient(model, batch, replace(loop, scale=1.0), run)
            found = found._replace(gradients=[torch.full_like(p, math.inf) for p in parameters])
        size = self.ways_of("train") * self.queries
        targets = torch.cat([episode.query.targets for episode in batch])
        accuracy = episode_accuracies(torch.cat(found.logits), targets, size).mean()
        run.log.record("maml/query_accuracy", accuracy)
        return deliver(found.loss, found.gradients, parameters)

    def _meta_gradient(
        self, model: nn.Module, batch: Episodes, loop: InnerLoop, run: Run
    ) -> MetaGradient:
        parameters = [p for p in model.parameters() if p.requires_grad]
        weights = step_weights(self.steps, run.epoch, self.multi_step_epochs)
        try:
            # Gradients are taken in here; forward passes switch autocast on.
            with run.device.autocast(enabled=False):
                tasks = [Task(self._plan_of(model, task, "train", 0, run), *task) for task in batch]
                loss = partial(_inner_loss, run)
                return meta_gradient(
                    self._workers_of(run), tasks, parameters, loop, loss, step_weights=weights
                )
        except (RuntimeError, ValueError) as error:
            self._explain(error, run)
            raise

    def predict_tasks(
        self,
        model: nn.Module,
        episodes: Episodes,
        phase: Phase,
        run: Run,
        *,
        every_step: bool = False,
    ) -> list[Tensor]:
        """Return each task's query logits after adapting, as often as its plan says."""
        plans = []
        for episode in episodes:
            first = self._plan_of(model, episode, phase, 0, run)
            further = range(1, first.predictive_draws)
            plans.append(
                [first, *(self._plan_of(model, episode, phase, draw, run) for draw in further)]
            )
        jobs = [
            (plan, episode) for episode, own in zip(episodes, plans, strict=True) for plan in own
        ]
        loop = self._loop(run, self.steps if self.test_steps is None else self.test_steps)
        loss = partial(_inner_loss, run)

        def work(twin: nn.Module, i: int) -> Tensor:
            plan, episode = jobs[i]
            return predict_task(
                twin, plan, episode.support, episode.query.inputs, loop, loss, every_step=every_step
            )

        try:
            logits = iter(list(self._workers_of(run).map(work, len(jobs))))
        except (RuntimeError, ValueError) as error:
            self._explain(error, run)
            raise
        return [average([next(logits) for _ in own]).float() for own in plans]

    def _plan_of(
        self, model: nn.Module, episode: Any, phase: Phase, draw: int, run: Run
    ) -> TaskPlan:
        names = backbone_names(model)
        named = dict(model.named_parameters())
        return cast(MamlHooks, run.hook).plan_task(
            params={name: named[name] for name in names},
            support=episode.support,
            query_size=len(episode.query.targets),
            ways=self.ways_of(phase),
            phase=phase,
            draw=draw,
            run=run,
        )

    def _loop(self, run: Run, steps: int) -> InnerLoop:
        return InnerLoop(
            steps,
            self.order == "second",
            self.max_inner_norm,
            run.device.scaler.get_scale() if run.device.scaler.is_enabled() else 1.0,
            run.device.autocast,
            self.norm_statistics,
            self.checkpoint_steps,
            self.head,
            self.prototype_scale,
        )

    def _workers_of(self, run: Run) -> Workers:
        if self._workers is None:
            on_cpu = run.device.torch.type == "cpu"
            count = self.workers or (min(self.tasks, torch.get_num_threads()) if on_cpu else 1)
            self._workers = Workers(run.model, self.norm_statistics, count)
        return self._workers

    def _explain(self, error: Exception, run: Run) -> None:
        for option, why in explained(error, run.recipe.model.name):
            self.refuse(run, option, why)

    @hookimpl
    def before_optimizer_step(self, model: nn.Module, run: Run) -> None:
        """Clip the entries of the meta-gradient."""
        if self.max_meta_value is not None:
            nn.utils.clip_grad_value_(model.parameters(), self.max_meta_value)

    @hookimpl
    def on_fit_end(self, run: Run) -> None:
        """Test, then end the threads."""
        self.test(run)
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def explain(self, run: Run) -> list[str]:
        """Say what adapts, how, and how tasks share the cores."""
        params = {name: run.model.get_parameter(name) for name in backbone_names(run.model)}
        plan = self.plan_task(params, run)
        moved = sum(params[name].numel() for name in plan.adapt)
        total = sum(p.numel() for p in params.values())
        test_steps = self.steps if self.test_steps is None else self.test_steps
        workers = self._workers_of(run)
        return [
            (
                f"{self.order}-order, {self.steps} steps of {self.inner_lr:g} on the mean loss "
                f"({test_steps} in validation and test); adapts {moved:,} of {total:,} values "
                f"({self.adapt}, norms never); classifier: {self.head}"
            ),
            (
                f"batch norms use {self.norm_statistics} statistics; dropout and stochastic depth "
                "are off inside tasks"
            ),
            f"{min(workers.count, self.tasks)} of {self.tasks} tasks at a time",
        ]


def _inner_loss(
    run: Run, model: nn.Module, params: Mapping[str, Tensor], plan: TaskPlan, support: Any
) -> Tensor:
    return cast(MamlHooks, run.hook).inner_loss(
        model=model, params=params, plan=plan, support=support, run=run
    )
