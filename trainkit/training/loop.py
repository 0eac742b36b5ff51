"""The training loop.

::

    on_fit_start
    for epoch:
        on_epoch_start
        select_trainable                     which parameters train in this epoch
        for window of `accumulate` micro-batches:
            for batch in window:
                prepare_batch
                compute_loss                 loss by its share of the window, then backward
                    compute_output           the model's forward pass
                    compute_criterion        the loss of its output
            unscale, averaged over ranks
            before_optimizer_step            gradients final, parameters untouched
            optimizer.step, scheduler.step
            after_optimizer_step             parameters have moved
            on_log                           every few steps, for each of them
        on_evaluate_start
        for batch in validation:
            evaluate_batch
        on_evaluate_end
        on_epoch_end                         then the checkpoint
    on_fit_end
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import chain
from typing import Any, cast

from torch import nn

from trainkit.checks.watch import Watch
from trainkit.errors import Interrupted, TrainingError, UserError
from trainkit.hooks.guard import naming
from trainkit.hooks.run import Run
from trainkit.seeds import derive_seed, isolated
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.trainable import select, trained
from trainkit.training.window import StepLoss, Window


@naming()
def fit(
    run: Run,
    checkpointer: Checkpointer,
    *,
    interrupted: Callable[[], bool] = lambda: False,
    until: int | None = None,
) -> None:
    """Train from where `run` stands to its last epoch.

    Args:
        run: complete, and restored if it is to go on from a checkpoint.
        checkpointer: writes checkpoints.
        interrupted: asked after every step and every batch of validation whether the user wants to
            stop.
        until: stop after this many steps in total, as if interrupted there.

    Raises:
        Interrupted: the run was stopped; its state has been saved.
        TrainingError: a loss, a gradient or something that would be saved is not finite.
        PluginError: something that would be saved could not be read back.
    """
    try:
        _fit(run, checkpointer, interrupted, until)
    except (Interrupted, UserError):
        raise
    except Exception as error:
        # What fails on a number that is not finite says less than where that came from.
        said = None
        with suppress(RuntimeError):  # a device that has failed cannot be asked
            said = checkpointer.watch.cause()
        if said is None or said == str(error):
            raise
        raise TrainingError(said) from error


def _fit(
    run: Run, checkpointer: Checkpointer, interrupted: Callable[[], bool], until: int | None
) -> None:
    step_loss: nn.Module | None = run.device.replicate(StepLoss(run))
    trains = trained(run.model)
    epochs, steps_per_epoch = run.recipe.train.epochs, run.data.train.steps_per_epoch
    run.hook.on_fit_start(run=run)
    checkpointer.begin(run)
    while run.epoch < epochs and not run.stop_reason:
        start = run.step - run.epoch * steps_per_epoch
        if start == 0:
            begun = begin_epoch(run, trains)
            if begun != trains:
                # The old one must go before the next is made: each waits for the gradients that it
                # was made for.
                trains, step_loss = begun, None
        if step_loss is None:
            step_loss = run.device.replicate(StepLoss(run))
        # A run that was stopped while validating has no steps left in its epoch.
        batches = run.data.train.batches(run.epoch, start) if start < steps_per_epoch else iter(())
        for position in range(start, steps_per_epoch):
            train_step(
                run,
                step_loss,
                checkpointer.watch,
                position,
                _read_ahead(batches, run, checkpointer, position),
            )
            stop = run.device.any(interrupted()) or run.step == until
            if run.log.pending >= run.recipe.train.log_every:
                flush_log(run, checkpointer)
            if (stop or checkpointer.is_due(run.step)) and position + 1 < steps_per_epoch:
                flush_log(run, checkpointer)
                checkpointer.save(run)
            if stop and position + 1 < steps_per_epoch:
                raise Interrupted(run.folder)
        flush_log(run, checkpointer)
        if (run.epoch + 1) % run.recipe.train.evaluate_every == 0 or run.epoch + 1 == epochs:
            _validate(run, checkpointer, interrupted)
        run.hook.on_epoch_end(run=run)
        run.log.commit(run.step, run.epoch)
        flush_log(run, checkpointer)  # the checkpoint holds nothing that is still to be written
        if run.device.any(bool(run.stop_reason)):
            run.stop(
                "another rank asked for it"
            )  # a plugin may do so where only one rank is told, in on_log say
        run.epoch += 1
        checkpointer.save(run)
        going_on = run.epoch < epochs and not run.stop_reason
        if going_on and (run.device.any(interrupted()) or run.step == until):
            raise Interrupted(run.folder)
    checkpointer.watch.sum_up()
    run.hook.on_fit_end(run=run)
    run.log.commit(run.step, max(run.epoch - 1, 0))  # it belongs to the epoch that was the last
    run.log.flush()


def _validate(run: Run, checkpointer: Checkpointer, interrupted: Callable[[], bool]) -> None:
    checkpointer.hold(run)
    try:
        evaluate(run, checkpointer, interrupted=interrupted)
    except (Interrupted, UserError):  # a UserError: an image that cannot be read, say
        # Validation may have put other weights into the model; it is done again as a whole.
        checkpointer.save_held()
        raise


def _read_ahead(
    batches: Iterator[Any], run: Run, checkpointer: Checkpointer, position: int
) -> Iterator[Any]:
    """Return the batches with the next one read; where it cannot be, the steps of the epoch so
    far are saved first.
    """
    try:
        first = next(batches)
    except UserError:
        # Every rank must take part in saving, and the others have read theirs.
        if position and run.device.world == 1:
            flush_log(run, checkpointer)
            checkpointer.save(run)
        raise
    return chain((first,), batches)


def begin_epoch(run: Run, trains: frozenset[str]) -> frozenset[str]:
    """Begin an epoch; return the names of the parameters that train in it, given those that did
    until now.
    """
    run.model.train()
    run.hook.on_epoch_start(run=run)
    return select(run, trains)


def train_step(
    run: Run, step_loss: nn.Module, watch: Watch, position: int, batches: Iterator[Any]
) -> None:
    """Take one optimizer step on the window at `position` of the current epoch."""
    weights = run.data.train.window(run.epoch, position).weights
    scaler, optimizer = run.device.scaler, run.optimizer
    window = Window(run, step_loss, weights, keeps=_asks(run, "window"))
    total, batch = window.train(batches)
    scaler.unscale_(optimizer)
    watch.note_loss(total)
    run.hook.before_optimizer_step(model=run.model, optimizer=optimizer, window=window, run=run)
    run.log.record("loss", total)
    run.log.record("lr", max(group["lr"] for group in optimizer.param_groups))
    watch.note_gradients()
    scaler.step(optimizer)
    scaler.update()
    watch.note_step()
    run.step += 1
    run.scheduler.step_update(run.step)
    run.hook.after_optimizer_step(model=run.model, batch=batch, loss=total, run=run)
    run.log.commit(run.step, run.epoch)


def _asks(run: Run, argument: str) -> bool:
    """Return whether anybody takes this argument of `before_optimizer_step`."""
    implementations = cast(Any, run.hook.before_optimizer_step).get_hookimpls()
    return any(argument in implementation.argnames for implementation in implementations)


@naming()
def evaluate(
    run: Run,
    checkpointer: Checkpointer | None = None,
    *,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Measure the model on the validation data; `checkpointer` keeps its weights if they are among
    the best.

    Validation has random streams of its own, the plugins' too: how often it happens does not change
    training.

    Raises:
        Interrupted: the user wants to stop; the run is as validation has it, and must not be saved.
    """
    asks = min(run.device.gather(len(run.data.val)))  # all ranks must ask equally often
    modes = [(module, module.training) for module in run.model.modules()]
    run.hook.on_evaluate_start(model=run.model, run=run)
    run.device.share_buffers(run.model)
    run.model.eval()
    run.metrics.reset()
    with ExitStack() as streams:
        streams.enter_context(
            isolated(derive_seed(run.recipe.seed, "evaluate", run.epoch), run.device.torch)
        )
        for plugin in run.plugins.values():
            streams.enter_context(plugin.isolated_streams("evaluate", run.epoch))
        for number, batch in enumerate(run.data.val):
            logits, targets = run.hook.evaluate_batch(model=run.model, batch=batch, run=run)
            run.metrics.update(logits, targets)
            if number < asks and run.device.any(interrupted()):
                raise Interrupted(run.folder)
    metrics = {name: float(value) for name, value in run.metrics.compute().items()}
    if checkpointer is not None:
        checkpointer.save_if_best(run, metrics)
        run.scheduler.step(run.epoch + 1, metrics.get(run.recipe.checkpoint.metric))
    for module, training in modes:
        module.training = training
    run.hook.on_evaluate_end(model=run.model, metrics=metrics, run=run)
    for name, value in metrics.items():
        run.log.record(f"val/{name}", value)
    run.log.commit(run.step, run.epoch)
    if checkpointer is not None:
        flush_log(run, checkpointer)
    return metrics


def flush_log(run: Run, checkpointer: Checkpointer) -> None:
    """Bring what has been logged to the host, tell the plugins, and stop if a step was not
    finite.
    """
    records = run.log.flush()
    fault = checkpointer.watch.look(records)
    for record in records:
        if run.device.is_main:
            run.hook.on_log(record=record, run=run)
        if fault is not None and record.step >= fault[0]:
            break
    if fault is not None:
        raise TrainingError(fault[1])
