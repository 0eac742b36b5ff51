"""The micro-batches of one optimizer step, and the gradient of their mean loss wherever the
parameters are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from trainkit.checks.reach import Arrivals, look, mark
from trainkit.hooks.run import Run
from trainkit.seeds import rng_state, set_rng_state
from trainkit.training.trainable import trained


class StepLoss(nn.Module):
    """The loss of one micro-batch as a module, so that gradients are averaged over ranks however
    a plugin gets it.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model = run.model
        self._run = [run]  # in a list: a run is no submodule
        self._looked = False

    def forward(self, batch: Any) -> Tensor:
        """Return the loss of a prepared micro-batch.

        Raises:
            TrainingError: on several ranks, the first loss does not reach all parameters.
        """
        (run,) = self._run
        loss = run.hook.compute_loss(model=self.model, batch=batch, run=run)
        if not self._looked:
            look(run, loss)
            self._looked = True
        return loss


class Replica:
    """The loss of one micro-batch, replicated over ranks, for the parameters that train now.

    Args:
        run: the run.
    """

    step_loss: nn.Module

    def __init__(self, run: Run) -> None:
        self.trains = trained(run.model)
        self.step_loss = run.device.replicate(StepLoss(run))
        self._run = run

    def train_only(self, names: frozenset[str]) -> None:
        """Average the gradients of these parameters from now on."""
        if names == self.trains:
            return
        self.trains = names
        # The old one must go before the next is made: each waits for the gradients that it was
        # made for.
        del self.step_loss
        self.step_loss = self._run.device.replicate(StepLoss(self._run))


@dataclass(frozen=True)
class _Part:
    """A micro-batch as the loss saw it, and the random streams as they were just before."""

    batch: Any
    streams: dict[str, Any]
    plugins: Mapping[str, dict[str, Tensor]]


class Window:
    """The micro-batches of one optimizer step.

    Args:
        run: the run.
        step_loss: its `StepLoss`, replicated over ranks.
        weights: the share of each micro-batch in the mean loss.
        keeps: whether the gradient will be asked for again; only then are the micro-batches kept.
    """

    def __init__(
        self, run: Run, step_loss: nn.Module, weights: tuple[float, ...], *, keeps: bool
    ) -> None:
        self.weights = weights
        self._run, self._step_loss, self._keeps = run, step_loss, keeps
        self._parts: list[_Part] = []
        self._final: list[tuple[int, int] | None] = []

    def train(self, batches: Iterator[Any]) -> tuple[Tensor, Any]:
        """Take the window's micro-batches; return their mean loss, detached, and the last.
        Gradients are unscaled then.
        """
        run, total = self._run, None
        run.optimizer.zero_grad(set_to_none=True)
        for i in range(len(self.weights)):
            batch = run.hook.prepare_batch(batch=next(batches), run=run)
            if self._keeps:
                plugins = {}
                for name, plugin in run.plugins.items():
                    plugins[name] = plugin.generator_states()
                self._parts.append(_Part(batch, rng_state(run.device.torch), plugins))
            share = self._backward(batch, i)
            total = share if total is None else total + share
        assert total is not None  # a window has at least one micro-batch
        run.device.scaler.unscale_(run.optimizer)
        if self._keeps:
            self._final = [mark(p) for p in run.model.parameters()]
        return total, batch

    def differentiate(self) -> Tensor:
        """Put into `.grad` the gradient of the window's mean loss at the parameters as they are
        now.

        It is final as in `before_optimizer_step`: of the whole window, unscaled, averaged over
        ranks, and under fp16 the step is skipped if it, or the one before, is not finite. Batches
        and everything random (augmentation, dropout, a plugin's draws) are as the step's own pass
        had them. Nothing else changes: buffers, random streams, logs and plugins are as if the loss
        had not been evaluated.

        Returns:
            The mean loss there on this rank, a detached scalar.

        Raises:
            RecipeError: the gradient has been changed since the step's own pass, by a plugin that
                came first; the change would be lost.
        """
        run, total = self._run, None
        self._refuse_to_lose()
        with run.untouched():
            for i, part in enumerate(self._parts):
                set_rng_state(part.streams, run.device.torch)
                for name, plugin in run.plugins.items():
                    plugin.load_generator_states(part.plugins[name])
                share = self._backward(part.batch, i)
                total = share if total is None else total + share
            found = [(p, p.grad) for p in run.model.parameters()]
        for parameter, gradient in found:
            parameter.grad = gradient
        run.device.scaler.unscale_again(run.optimizer)
        self._final = [mark(p) for p in run.model.parameters()]
        assert (
            total is not None
        )  # whoever can call this has asked for it, and so the micro-batches were kept
        return total

    def _refuse_to_lose(self) -> None:
        run = self._run
        for p, final in zip(run.model.parameters(), self._final, strict=True):
            if p.grad is not None and mark(p) != final:
                break
        else:
            return
        implementations = cast(Any, run.hook.before_optimizer_step).get_hookimpls()
        asking = next(i.plugin_name for i in implementations if "window" in i.argnames)
        run.plugins[asking].refuse(
            run,
            "",
            "replaces the gradient by that at other parameters, and it has been changed before, "
            "which would be lost; list this plugin before the one that changes it",
        )

    def _backward(self, batch: Any, i: int) -> Tensor:
        """Add the gradient of micro-batch `i`, scaled; return its share of the loss, detached."""
        arrivals = self._averaged(i) if self._run.device.world > 1 else None
        loss = self._step_loss(batch)
        if self.weights[i] == 1:
            share = loss
        else:
            share = loss * self.weights[i]
        self._run.device.scaler.scale(share).backward()
        if arrivals is not None:
            arrivals.check(self._run)
        return cast(Tensor, share.detach())

    def _averaged(self, i: int) -> Arrivals | None:
        """Average over ranks once per window, while its last backward pass runs."""
        # DDP offers `no_sync()` for the other passes. We set the flag that it sets by hand:
        # whether to average is then one line for every pass, and an exception leaves nothing
        # behind.
        replicated = cast(nn.parallel.DistributedDataParallel, self._step_loss)
        replicated.require_backward_grad_sync = i + 1 == len(self.weights)
        return Arrivals(replicated) if replicated.require_backward_grad_sync else None
