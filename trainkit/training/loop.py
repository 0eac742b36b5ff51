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
            optimizer.step, scheduler.step_update
            after_optimizer_step             parameters have moved
            on_log                           every few steps, for each of them
        on_evaluate_start
        for batch in validation:
            evaluate_batch
        on_best                              only if it is the best so far
        on_evaluate_end
        scheduler.step                       told the metric of the validation
        on_epoch_end                         then the checkpoint
    on_fit_end
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import chain
from operator import itemgetter
from typing import Any, cast

from torch import nn

from trainkit.checks.watch import Watch
from trainkit.errors import Interrupted, TrainingError, UserError
from trainkit.hooks.guard import naming
from trainkit.hooks.run import Run
from trainkit.seeds import derive_seed, isolated
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.trainable import select
from trainkit.training.window import Replica, Window


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

    def stop_requested() -> bool:
        # On several ranks this is an all-reduce of one number on the CPU, at every step. It cannot
        # be rarer: a signal reaches the ranks at different moments, and a rank that stopped alone
        # would leave the others waiting for its gradients in the next step.
        return run.device.any(interrupted()) or run.step == until

    try:
        _fit(run, checkpointer, stop_requested, interrupted)
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
    run: Run,
    checkpointer: Checkpointer,
    stop_requested: Callable[[], bool],
    interrupted: Callable[[], bool],
) -> None:
    replica, steps_per_epoch = Replica(run), run.data.train.steps_per_epoch
    run.hook.on_fit_start(run=run)
    checkpointer.begin(run)
    while has_epochs_left(run):
        start = begin_epoch(run, replica)
        stream = batches_from(run, start)
        for position in range(start, steps_per_epoch):
            batches = read_ahead(stream, run, checkpointer, position)
            train_step(run, replica.step_loss, checkpointer.watch, position, batches)
            stop = stop_requested()
            if run.log.pending >= run.recipe.train.log_every:
                flush_log(run, checkpointer)
            if position + 1 < steps_per_epoch:
                checkpoint_if_due(run, checkpointer, stop)
        flush_log(run, checkpointer)
        if validation_is_due(run):
            validate(run, checkpointer, interrupted)
        end_epoch(run, checkpointer)
        if has_epochs_left(run) and stop_requested():
            raise Interrupted(run.folder)
    checkpointer.watch.sum_up()
    run.hook.on_fit_end(run=run)
    run.log.commit(run.step, max(run.epoch - 1, 0))  # it belongs to the epoch that was the last
    run.log.flush()


def has_epochs_left(run: Run) -> bool:
    """Return whether the run goes on with another epoch."""
    return run.epoch < run.recipe.train.epochs and not run.stop_reason


def begin_epoch(run: Run, replica: Replica) -> int:
    """Begin an epoch, or go on with one; return the position of its next step."""
    start = run.step - run.epoch * run.data.train.steps_per_epoch
    if start == 0:
        run.model.train()
        run.hook.on_epoch_start(run=run)
        replica.train_only(select(run, replica.trains))
    return start


def batches_from(run: Run, start: int) -> Iterator[Any]:
    """Return the batches of the epoch from the step at position `start` on."""
    if start == run.data.train.steps_per_epoch:
        return iter(())  # the run was stopped while validating
    return run.data.train.batches(run.epoch, start)


def read_ahead(
    batches: Iterator[Any], run: Run, checkpointer: Checkpointer, position: int
) -> Iterator[Any]:
    """Return the batches with the next one read.

    Where it cannot be read, the steps of the epoch so far are saved first.
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


def checkpoint_if_due(run: Run, checkpointer: Checkpointer, stop: bool) -> None:
    """Save the run within an epoch if the recipe or the user says so; then stop if the user does.

    Raises:
        Interrupted: the run stops here.
    """
    if stop or checkpointer.is_due(run.step):
        flush_log(run, checkpointer)
        checkpointer.save(run)
    if stop:
        raise Interrupted(run.folder)


def validation_is_due(run: Run) -> bool:
    """Return whether the epoch ends with a validation; the last one always does."""
    number, train = run.epoch + 1, run.recipe.train
    return number % train.evaluate_every == 0 or number == train.epochs


def validate(run: Run, checkpointer: Checkpointer, interrupted: Callable[[], bool]) -> None:
    """Evaluate at the end of an epoch, and tell the schedule what came out."""
    checkpointer.hold(run)
    try:
        metrics = evaluate(run, checkpointer, interrupted=interrupted)
        flush_log(run, checkpointer)
    except (Interrupted, UserError):  # a UserError: an image that cannot be read, say
        # Validation may have put other weights into the model; it is done again as a whole.
        checkpointer.save_held()
        raise
    run.scheduler.step(run.epoch + 1, metrics.get(run.recipe.checkpoint.metric))


def end_epoch(run: Run, checkpointer: Checkpointer) -> None:
    """End an epoch: tell the plugins, and save the run as it is between two epochs."""
    run.hook.on_epoch_end(run=run)
    run.log.commit(run.step, run.epoch)
    flush_log(run, checkpointer)  # the checkpoint holds nothing that is still to be written
    # A plugin may stop the run where only one rank is told, as in on_log.
    if run.device.any(bool(run.stop_reason)):
        run.stop("another rank asked for it")
    run.epoch += 1
    checkpointer.save(run)


def train_step(
    run: Run, step_loss: nn.Module, watch: Watch, position: int, batches: Iterator[Any]
) -> None:
    """Take one optimizer step on the window at `position` of the current epoch."""
    weights = run.data.train.window(run.epoch, position).weights
    scaler, optimizer = run.device.scaler, run.optimizer
    window = Window(run, step_loss, weights, keeps=_asks(run, "window"))
    total, batch = window.train(batches)
    watch.note_loss(total)
    run.hook.before_optimizer_step(model=run.model, optimizer=optimizer, window=window, run=run)
    run.log.record("loss", total)
    run.log.record("lr", max(map(itemgetter("lr"), optimizer.param_groups)))
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
    if checkpointer is not None and checkpointer.save_if_best(run, metrics):
        run.hook.on_best(model=run.model, metrics=metrics, run=run)
    for module, training in modes:
        module.training = training
    run.hook.on_evaluate_end(model=run.model, metrics=metrics, run=run)
    for name, value in metrics.items():
        run.log.record(f"val/{name}", value)
    run.log.commit(run.step, run.epoch)
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
