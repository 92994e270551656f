"""A run from its settings: build, train, test, write down. And a finished run's folder back into a model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine.cost.budget import range_of
from engine.cost.macs import Complexity, measure
from engine.data import build_data
from engine.figures.confusion import confusion_figure
from engine.figures.drawing import draw
from engine.machine import commit, device_name, peak_memory, pick_device, versions
from engine.measure.confusion import class_accuracy, confusion_matrix
from engine.measure.evaluate import Evaluation
from engine.measure.intervals import wilson
from engine.measure.predictions import predictions_of, write_predictions
from engine.runs import checkpoint
from engine.runs.compatibility import check_classes, check_fits, same_images, test_set_of
from engine.runs.folder import RunFolder, with_budget
from engine.runs.log import log_to, start_log
from engine.runs.results import Results
from engine.runs.tracking import Tracker
from engine.runs.weights import built, load_trained, start_weights, with_statistics
from engine.settings.changes import changed_on_resume
from engine.settings.schema import RunSettings
from engine.train.trainer import Trainer
from models.budget import target_macs
from models.interface import model_name, removed_per_block, tokens_per_block
from models.lora import merge_lora
from models.settings import UserError

log = logging.getLogger("hybridmerge")


def run_experiment(
    settings: RunSettings,
    folder: Path,
    resume: bool = False,
    begin: Callable[[RunSettings], None] = lambda settings: None,
) -> Results:
    """Trains by `settings` in an opened run folder, tests once at the end, and writes `results.json`.

    Beside it lie `predictions.csv`, what was said of each test image, and `confusion.png`; neither where an image has
    many labels.

    Args:
        settings: checked settings.
        folder: the run's own folder, locked by the caller.
        resume: go on from `last.pt` if there is one.
        begin: called with the settings, complete by now, when everything fits together, before anything is written.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: device, data, model and checkpoint that do not go together, in one line.
    """
    run = RunFolder(folder)
    if resume:
        check_unchanged(settings, run)
        if (results := run.read_results()) is not None:
            return results  # it came to its end; the test set is used once
    kept, code = start_log(), commit()  # now: the files may be other ones when the run ends
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = pick_device(settings.device)
    with limits_in_words(settings, device):
        data = build_data(settings.data, settings.split, settings.seed)
        settings = settings.with_classes(len(data.classes))
        solved = with_budget(settings)
        state = checkpoint.load(run.checkpoint("last")) if resume and run.checkpoint("last").exists() else None
        model = built(solved)
        if state is None or state.get("partial"):  # else the checkpoint has all that they became
            start_weights(model, settings)
            warn_of_seen(settings)
        check_fits(settings, data)
        data = with_statistics(data, settings, state)
        model = model.to(device)
        cost = measure(model, settings=solved.model)
        trainer = Trainer(model, data, settings, folder)
        if state:
            trainer.resume(state)

        # Nothing is written before everything fits together: a mistake corrected, the same command runs.
        begin(settings)
        log_to(folder, kept)
        run.write_settings(settings)
        with Tracker(folder, trainer.progress.step, state["lines"]) if state else Tracker(folder) as tracker:
            describe(trainer)
            tracker.curve("tokens_left_after_block", tokens_per_block(model))
            trainer.fit(tracker)
            results = test(trainer, cost, tracker, code)
            run.write_results(results)
            measured = {"gmacs": results.gmacs, "params": results.params, "seconds": results.seconds}
            if results.test_score is not None:
                measured = {f"test_{results.metric}": results.test_score, **measured}
            measured = {f"hparam/{key}": value for key, value in measured.items()}
            tracker.hparams(results.steps, settings.model_dump(mode="json"), measured)
    return results


@contextmanager
def limits_in_words(settings: RunSettings, device: torch.device) -> Iterator[None]:
    """Turns running out of memory, or of values for BatchNorm, into a UserError that says what to change."""
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


def check_unchanged(settings: RunSettings, run: RunFolder) -> None:
    """Demands that a resumed run computes what it started to compute.

    Raises:
        UserError: the first setting that differs and may not.
    """
    if not run.is_run:
        return  # it was stopped before it began
    if changed := changed_on_resume(run.settings, settings):
        raise UserError(f"{changed}, in {run}; resume without this change, or start a run under another name=")


def warn_of_seen(settings: RunSettings) -> None:
    """Says it where the weights are those of a run that may have trained on the images that test this one: a run on
    the same data with another test set."""
    if settings.model.weights is None:
        return
    source = Path(settings.model.weights)
    run = RunFolder(source if source.is_dir() else source.parent)
    if not run.is_run:
        return
    before = run.settings
    if same_images(before, settings) and test_set_of(before) != test_set_of(settings):
        log.warning(
            "model.weights: %s was trained on the same data with another test set: it has seen images that "
            "test this run, whose accuracy will be too high",
            source,
        )


def describe(trainer: Trainer) -> None:
    """Says once what is about to be trained on what, and what merging will really remove."""
    data, model = trainer.data, trainer.model
    log.info(
        "%s on %s, %s, from step %d of %d",
        trainer.settings.title,
        device_name(trainer.device),
        trainer.precision,
        trainer.progress.step,
        trainer.total_steps,
    )
    log.info(
        "%d training, %d validation, %d test images, %d classes",
        len(data.train),
        len(data.val),
        len(data.test),
        len(data.classes),
    )
    if not len(data.test):
        log.warning("split.test = 0: no test images, all train or validate; the accuracy is not measured")
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (data.mean, data.std))
    log.info("images of %s, normalised by mean %s and std %s", " x ".join(map(str, data.shape)), mean, std)
    if tokens := tokens_per_block(model):
        log.info("tokens removed by each block: %s; left: %s", removed_per_block(model), tokens)
    t, batch = trainer.settings.train, trainer.settings.train.batch_size * trainer.settings.train.accumulate
    if t.lr_batch and batch != t.lr_batch:
        fit = f"train.lr={t.lr * batch / t.lr_batch:.3g}"
        if t.lr_batch % t.batch_size == 0:
            fit += f", or train.accumulate={t.lr_batch // t.batch_size}"
        log.warning(
            "train.lr = %g is for %d images per step (train.lr_batch), this run has %d: use %s",
            t.lr,
            t.lr_batch,
            batch,
            fit,
        )
    if drawn := range_of(trainer.settings.model):
        log.info("this is the middle: each training step draws r from %d to %d; validation and test stay there", *drawn)


def test(trainer: Trainer, cost: Complexity, tracker: Tracker, code: str | None) -> Results:
    """Tests the best weights and returns what the run measured.

    `test_interval` is Wilson's for the accuracy, at 95 %; there is none for average precision. Without test images all
    that begins with `test_` is None, and `test_images` 0. `target_gmacs` is what merging was asked to cost, also where
    it was a ratio; None where no budget was asked for.

    Args:
        trainer: after its last step.
        cost: what the model costs.
        tracker: gets the confusion matrix.
        code: the git commit of the code.
    """
    model, progress, settings = trainer.model, trainer.progress, trainer.settings
    best = RunFolder(trainer.folder).checkpoint("best")
    state = checkpoint.load(best)
    check_classes(state["classes"], trainer.data, str(best))
    load_trained(model, state, best, trainer.saved_names)
    trained, parameters = trainer.tuning.trained(), sum(p.numel() for p in model.parameters())
    if settings.finetune and settings.finetune.mode == "lora":
        merge_lora(model)  # the run is read back with its adapters added in, which in bf16 computes something else
    test, by_class = tested(trainer, tracker)
    metric, n = next(iter(test.metrics)), test.n
    interval = None
    task = trainer.data.task
    if n and task.counts_images:
        interval = wilson(round(test.score * n), n)
    thresholds = None
    if task.has_thresholds and len(trainer.data.val):
        found = trainer.evaluate(trainer.data.val, keep_logits=True)
        thresholds = task.thresholds(task.probabilities(found.logits), trainer.data.val.labels)
    images = progress.step * settings.train.batch_size * settings.train.accumulate
    asked = target_macs(settings.model)
    return Results(
        name=settings.name,
        model=model_name(settings.model),
        data=settings.data.name,
        seed=settings.seed,
        metric=metric,
        method=method_of(settings),
        fold=settings.split.fold,
        test_images=n,
        test_loss=test.loss,
        test_metrics=test.metrics,
        test_interval=interval,
        val_score=progress.best if len(trainer.data.val) else None,
        thresholds=dict(zip(trainer.data.classes, thresholds, strict=True)) if thresholds else None,
        val_images=len(trainer.data.val),
        best_step=state["step"],
        steps=progress.step,
        epochs=trainer.epochs,
        train_images=len(trainer.data.train),
        data_sha256=trainer.fingerprint,
        params=cost.params,
        trained_params=trained,
        trained_share=trained / parameters,
        saved_mib=best.stat().st_size / 2**20,
        gmacs=cost.macs / 1e9,
        target_gmacs=None if asked is None else asked / 1e9,
        activations=cost.activations,
        tokens=cost.tokens,
        removed=removed_per_block(model),
        seconds=progress.seconds,
        images_per_second=images / progress.seconds,
        peak_memory_mib=peak_memory(trainer.device),
        class_accuracy=by_class or None,
        precision=trainer.precision,
        device=device_name(trainer.device),
        versions=versions(),
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        commit=code,
    )


def tested(trainer: Trainer, tracker: Tracker) -> tuple[Evaluation, dict[str, float | None]]:
    """The model on the test images, and each class's accuracy; leaves `predictions.csv` and the confusion matrix.

    Without test images all measures are None. Of many labels there is nothing for each class, and no file.
    """
    data, folder = trainer.data, trainer.folder
    if not len(data.test):
        return Evaluation(0, None, dict.fromkeys(data.task.titles)), {}
    if not data.task.one_class:
        return trainer.evaluate(data.test), {}
    test = trainer.evaluate(data.test, keep_logits=True)
    said = predictions_of(data.test.labels, test.logits)
    write_predictions(folder, said, data.test.paths, data.classes)
    matrix = confusion_matrix(said.labels, said.predicted, len(data.classes))
    title = f"{trainer.settings.title}: {100 * test.score:.2f} % of {test.n} test images"
    draw(folder, tracker, trainer.progress.step, "test/confusion", confusion_figure(matrix, data.classes, title))
    return test, class_accuracy(matrix, data.classes)


def method_of(settings: RunSettings) -> str:
    """How the weights were found, in a few words."""
    f = settings.finetune
    start = "from scratch" if settings.model.weights is None else "full"
    if f is None or (f.mode == "full" and not f.layer_decay):
        return start
    return {"full": f"full, layer decay {f.layer_decay}", "lora": f"lora, rank {f.rank or 8}"}.get(f.mode, f.mode)
