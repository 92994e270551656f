"""One run from its settings to its results: build, train, test, record."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from engine.cost.macs import measure_or_say
from engine.data import Data, build_data
from engine.files import writing
from engine.launch.group import ALONE, Group
from engine.machine import commit, pick_device
from engine.runs.checkpoints.stopped import StoppedRun, check_nothing_lost, find_stopped, warn_of_lost_best
from engine.runs.checkpoints.weights import built, start_weights, with_statistics
from engine.runs.compatibility import check_fits, same_images, test_set_of
from engine.runs.folder import RunFolder, with_budget
from engine.runs.log import log_to, start_log
from engine.runs.records.results import Results
from engine.runs.trackers import check_installed
from engine.runs.tracking import Silent, Tracker
from engine.settings.changes import changed_on_resume, freely_changed, goes_on
from engine.settings.schema import RunSettings
from engine.train.build import Preparation, build_trainer, prepare
from engine.train.cards import settings_card, show_results
from engine.train.describe import describe
from engine.train.final_test import test_best
from engine.train.loop.checkpoints import Progress
from engine.train.teacher import folder_of_teacher
from models.interface import tokens_per_block
from models.settings import UserError

log = logging.getLogger("hybridmerge")


def run_experiment(
    settings: RunSettings,
    folder: Path,
    *,
    resume: bool = False,
    begin: Callable[[RunSettings], None] = lambda settings: None,
    command: str = "",
    group: Group = ALONE,
) -> Results | None:
    """Trains by `settings` in a locked run folder, tests the best weights once at the end, and records the results.

    Args:
        settings: checked settings.
        folder: the run's own folder, locked by the caller.
        resume: whether to continue from `last.pt`, if there is one.
        begin: called with the settings, complete by now, when everything fits together, before anything is written.
        command: what the user typed, for TensorBoard; empty: not known.
        group: the processes that train together. The first writes and records.

    Returns:
        The results; None in the other processes of a group.

    Raises:
        UserError: device, data, model or checkpoint do not fit together.
    """
    run, longer = RunFolder(folder), ""
    if resume:
        with group.agreed():
            longer = check_unchanged(settings, run)
        if (results := run.read_results()) is not None and not longer:
            if group.leads:
                warn_of_lost_best(run, results)
            return results  # it came to its end; the test set is used once
    code = commit()  # now: the files may be other ones when the run ends
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = pick_device(settings.device) if group.size == 1 else group.device
    with explained_limits(settings, device):
        # Nothing is written before everything fits together: once a mistake is corrected, the same command runs.
        with group.agreed():
            run.check_files()
            kept_log = start_log(says=group.leads)
        prepared, progress, stopped = ready(settings, run, device, resume, group)
        settings = prepared.settings
        if not group.leads:
            build_trainer(prepared, progress, Silent()).fit()
            return test_best(prepared, progress, Silent(), code)
        begin(settings)
        log_to(run.log_file, kept_log)
        settle(run, prepared, progress, stopped, longer)
        with tracker_of(settings, run, progress, stopped) as tracker:
            describe(prepared, progress, longer)
            tracker.text(progress.step, "run", settings_card(settings, command, tokens_per_block(prepared.model)))
            build_trainer(prepared, progress, tracker).fit()
            with tracker.ending():
                results = test_best(prepared, progress, tracker, code)
                show_results(tracker, settings, results)
            run.write_results(results)  # last: a run with results is never tested again
    return results


def ready(
    settings: RunSettings, run: RunFolder, device: torch.device, resume: bool, group: Group
) -> tuple[Preparation, Progress, StoppedRun]:
    """Loads the data and prepares a run that starts, or that goes on where it was stopped; nothing is written.

    Raises:
        UserError: see `run_experiment`.
    """
    with group.agreed():
        if group.leads:
            check_installed(settings.log.trackers)
    data = data_of(settings, group)
    with group.agreed():
        settings = settings.with_classes(len(data.classes))
        stopped = find_stopped(run) if resume else StoppedRun()
        prepared = prepare_run(settings, data, run.path, device, stopped.state, group)
        progress = restored(prepared, stopped) if stopped.state else Progress()
        if resume and not stopped.state:
            check_nothing_lost(run, first_save(run, prepared))
    return prepared, progress, stopped


def data_of(settings: RunSettings, group: Group) -> Data:
    """Loads the data of a run in all processes, in the first one first, since it may download.

    Raises:
        UserError: see `run_experiment`.
    """
    load = partial(build_data, settings.data, settings.split, settings.seed)
    with group.agreed():
        data = load() if group.leads else None
    with group.agreed():
        return load() if data is None else data


def tracker_of(settings: RunSettings, run: RunFolder, progress: Progress, stopped: StoppedRun) -> Tracker:
    """Returns what records the numbers of a run that starts, or goes on where it was stopped."""
    lines = stopped.state["lines"] if stopped.state else None
    return Tracker(
        run.path,
        *([] if lines is None else [progress.step, lines]),
        trackers=settings.log.trackers,
        title=settings.title,
        home=Path(settings.out),
        settings=settings.model_dump(mode="json", exclude={"name", "out"}),
    )


def settle(run: RunFolder, prepared: Preparation, progress: Progress, stopped: StoppedRun, longer: str) -> None:
    """Brings the folder of a run into the state in which it begins or goes on.

    Checkpoints that it cannot continue from are set aside, best.pt is written again if it was lost, the results of a
    run that becomes `longer` are deleted, since it is not finished any more, and the settings are written.
    """
    stopped.set_aside()
    if stopped.lost_best and progress.step == progress.best_step:
        prepared.checkpoints.save_best(progress.step)  # the weights in last.pt are the best
    if longer:
        with writing(run.results_file):
            run.results_file.unlink(missing_ok=True)
    log_free_changes(run, prepared.settings)
    run.write_settings(prepared.settings)


def prepare_run(
    settings: RunSettings, data: Data, folder: Path, device: torch.device, state: dict | None, group: Group = ALONE
) -> Preparation:
    """Builds the model, with the weights that it starts from, and prepares its training.

    Args:
        settings: the run's settings, with the number of classes filled in.
        data: its splits, classes and statistics.
        folder: the run folder, in which nothing is written.
        device: to train on.
        state: the checkpoint that the run resumes from, which the caller restores; None: the run starts.
        group: the processes that train together.
    """
    solved = with_budget(settings)
    model = built(solved)
    if state is None or state.get("partial"):  # otherwise the checkpoint has all weights
        start_weights(model, settings)
        warn_of_seen(settings, "model.weights", settings.model.weights)
    teacher = folder_of_teacher(settings)
    warn_of_seen(settings, "train.teacher", None if teacher is None else teacher.path)
    check_fits(settings, data, trained=state is not None)
    data = with_statistics(data, settings, state)
    if settings.train.parallel == "ddp" or group.size == 1:  # otherwise it may not fit on the device
        model = model.to(device)
    return prepare(model, data, settings, folder, measure_or_say(model, settings=solved.model), group)


def restored(prepared: Preparation, stopped: StoppedRun) -> Progress:
    """Restores a stopped run; returns its progress, which forgets the best weights if they are lost.

    Raises:
        UserError: the checkpoint is not of this run or its data, or best.pt is lost and cannot be made again.
    """
    progress = prepared.checkpoints.resume(stopped.state, stopped.file)
    if not stopped.lost_best or stopped.remakes_best:
        return progress
    problem, left = stopped.lost_best, prepared.batches.total_steps - progress.step
    if os.path.lexists(prepared.checkpoints.best) or not left:
        longer = "train.epochs" if prepared.settings.train.steps is None else "train.steps"
        choice = "delete it to keep the best of the epochs that are left" if left else f"train with a larger {longer}"
        raise UserError(f"{problem}, and it cannot be made again; put a copy back, {choice}, or start the run again")
    log.warning("%s: the best of the epochs that are left is kept, the others are forgotten", problem)
    progress.best, progress.best_step = Progress.best, Progress.best_step
    return progress


def first_save(run: RunFolder, prepared: Preparation) -> int:
    """Returns the step after which a run that was stopped before its first checkpoint would have written it."""
    first = min(prepared.batches.steps_per_epoch, prepared.batches.total_steps)
    every = run.settings.checkpoint.every_steps if run.is_run else 0
    return min(first, every) if every else first


@contextmanager
def explained_limits(settings: RunSettings, device: torch.device) -> Iterator[None]:
    """Turns errors of torch about memory, or about too few values for BatchNorm, into a UserError with a fix."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            size = settings.train.batch_size
            raise UserError(
                f"train.batch_size = {size}: BatchNorm has one value per channel; use 2 or more, or a finer grid"
            ) from error
        raise
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            size, accumulate = settings.train.batch_size, settings.train.accumulate
            smaller = f"train.batch_size={max(size // 2, 1)} train.accumulate={accumulate * 2}"
            raise UserError(
                f"train.batch_size = {size}: out of memory on {device}; the same batch in smaller parts is {smaller}"
            ) from error
        raise


def check_unchanged(settings: RunSettings, run: RunFolder) -> str:
    """Checks that a resumed run has the settings that it was started with.

    Returns:
        A phrase that says by which setting the run becomes longer than it was started for; "" if it does not.

    Raises:
        UserError: the first setting that differs and may not.
    """
    if not run.is_run:
        return ""  # it was stopped before it began
    stored = run.trained_settings
    if changed := changed_on_resume(stored, settings, may_go_on=True):
        raise UserError(f"{changed}, in {run}; resume without this change, or start a run under another name=")
    longer = goes_on(stored, settings)
    if longer and run.is_finished and not run.last_checkpoints:
        raise UserError(f"{longer}: {run} has no last.pt to continue from; start a run under another name=")
    return longer


def log_free_changes(run: RunFolder, settings: RunSettings) -> None:
    """Logs the settings of a resumed run that differ from those in its folder and may."""
    if not run.is_run:
        return
    for change in freely_changed(run.settings, settings):
        log.info(change)


def warn_of_seen(settings: RunSettings, key: str, weights: str | Path | None) -> None:
    """Logs a warning if the weights are of a run on the same data with another test set.

    It may have been trained on images that test this run.

    Args:
        settings: of this run.
        key: where the weights are given, for the message.
        weights: a run folder or a file in it, or another source of weights; None: there are none.
    """
    if weights is None:
        return
    source = Path(weights)
    run = RunFolder(source if source.is_dir() else source.parent)
    if not run.is_run:
        return
    before = run.settings
    if same_images(before, settings) and test_set_of(before) != test_set_of(settings):
        log.warning(
            "%s: %s was trained on the same data with another test set: it has seen images that test this run, whose "
            "accuracy will be too high",
            key,
            source,
        )
