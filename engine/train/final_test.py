"""The end of a run: its best weights on the test images, the pictures of that, and everything that is recorded."""

from __future__ import annotations

import time
from typing import Any

from engine.data import Data
from engine.figures.confusion import confused_figure, confusion_figure
from engine.figures.drawing import draw
from engine.figures.gallery import mistakes_figure
from engine.machine import device_name, peak_memory, versions
from engine.measure.confusion import confusion_matrix, most_confused
from engine.measure.evaluate import Evaluation, evaluate_split
from engine.measure.intervals import wilson
from engine.measure.predictions import predictions_of, write_predictions
from engine.runs.checkpoints import checkpoint
from engine.runs.checkpoints.weights import check_classes, load_trained
from engine.runs.folder import RunFolder
from engine.runs.records.class_scores import classes_to_json
from engine.runs.records.results import Results
from engine.runs.tracking import Tracker
from engine.settings.schema import RunSettings
from engine.train.build import Preparation
from engine.train.loop.checkpoints import Progress
from models.budget import target_macs
from models.interface import model_name, removed_per_block
from models.lora import merge_lora


def test_best(prepared: Preparation, progress: Progress, tracker: Tracker, commit: str | None) -> Results | None:
    """Tests the best weights, once, and returns what the run measured; None in other processes than the first.

    The processes of a group share the images, as in validation.

    Args:
        prepared: the run; its model gets the best weights.
        progress: after the last step.
        tracker: gets the pictures.
        commit: the git commit of the code that has trained.
    """
    cost, model, data, settings = prepared.cost, prepared.model, prepared.data, prepared.settings
    state = _with_best(prepared)
    trained, parameters = prepared.tuning.trained(), sum(p.numel() for p in model.parameters())
    test, val = _evaluated(prepared)
    if not prepared.group.leads:
        return None
    _show(prepared, test, progress.step, tracker)
    target = target_macs(settings.model)
    return Results(
        name=settings.name,
        model=model_name(settings.model),
        data=settings.data.name,
        seed=settings.seed,
        metric=data.task.main_metric,
        method=method_of(settings),
        fold=settings.split.fold,
        test_images=test.n,
        no_test=data.absent.get("test"),
        test_loss=test.loss,
        test_metrics=test.metrics,
        test_interval=_interval(test, data),
        val_score=progress.best if len(data.val) else None,
        selected_by=settings.train.select,
        thresholds=_thresholds(data, val),
        val_images=len(data.val),
        best_step=state["step"],
        steps=progress.step,
        epochs=prepared.epochs,
        train_images=len(data.train),
        data_sha256=prepared.checkpoints.fingerprint,
        params=cost.params,
        trained_params=trained,
        trained_share=trained / parameters,
        saved_mib=prepared.checkpoints.best.stat().st_size / 2**20,
        gmacs=cost.gmacs,
        target_gmacs=None if target is None else target / 1e9,
        activations=cost.activations,
        tokens=cost.tokens,
        removed=removed_per_block(model),
        seconds=progress.seconds,
        images_per_second=progress.step * settings.train.batch_size * settings.train.accumulate / progress.seconds,
        peak_memory_mib=peak_memory(prepared.device),
        **_class_scores(data, test, val),
        precision=prepared.precision,
        device=device_name(prepared.device),
        versions=versions(),
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        commit=commit,
    )


def _with_best(prepared: Preparation) -> dict[str, Any]:
    """Gives the model of every process the best weights; returns their checkpoint."""
    best, group = prepared.checkpoints.best, prepared.group
    group.wait()  # the first process may still be writing it
    with group.agreed():
        state = checkpoint.load(best, {**checkpoint.WEIGHTS, "step": int})
        check_classes(state["classes"], prepared.data.classes, best)
    load_trained(prepared.model, state, best, prepared.checkpoints.saved_names)
    return state


def _evaluated(prepared: Preparation) -> tuple[Evaluation, Evaluation | None]:
    """Evaluates the model on the test images, its adapters added in; without any, all measures are None.

    Returns:
        Beside this the evaluation on the validation images, where it is needed; otherwise None.
    """
    data, settings, task = prepared.data, prepared.settings, prepared.data.task
    if settings.finetune and settings.finetune.mode == "lora":
        merge_lora(prepared.model)  # the run is read back with its adapters added in, which in bf16 computes otherwise
    common = settings.train.batch_size, prepared.autocast
    kept = {"keep_logits": task.one_class, "keep_mistakes": settings.log.images, "group": prepared.group}
    test, val = Evaluation(0, None, dict.fromkeys(task.titles)), None
    if len(data.test):
        test = evaluate_split(prepared.model, data, "test", *common, **kept)
    if len(data.val) and (task.has_thresholds or not test.n):
        kept = {"keep_logits": task.has_thresholds, "group": prepared.group}
        val = evaluate_split(prepared.model, data, "val", *common, **kept)
    return test, val


def _show(prepared: Preparation, test: Evaluation, step: int, tracker: Tracker) -> None:
    """Leaves `predictions.csv`, the confusion matrix, the most confused images, and the most confident mistakes, which
    only TensorBoard gets; nothing without test images, or where an image has many labels."""
    if test.logits is None:
        return
    data, settings, folder = prepared.data, prepared.settings, prepared.checkpoints.folder
    predictions = predictions_of(data.test.labels, test.logits, data.task)
    write_predictions(RunFolder(folder).predictions_file, predictions, data.test.paths, data.classes)
    matrix = confusion_matrix(predictions.labels, predictions.predicted, len(data.classes))
    title = f"{settings.title}: {100 * test.score:.2f} % of {test.n} test images"
    draw(folder, tracker, step, "test/confusion", confusion_figure(matrix, data.classes, title))
    title = f"{settings.title}: confused most"
    figure = confused_figure(most_confused(matrix), predictions, data.test, data.classes, title)
    draw(folder, tracker, step, "test/confused", figure)
    if test.mistakes:
        tracker.figure(step, "wrong/test", mistakes_figure(test.mistakes, data.test, data.classes))


def _class_scores(data: Data, test: Evaluation, val: Evaluation | None) -> dict[str, Any]:
    """Returns the fields of `Results` about single classes: on the test images, or on the validation images where there
    are no test images."""
    classes, classes_of = test.classes, "test"
    fields: dict[str, Any] = {"train_class_images": dict(zip(data.classes, data.train_class_images, strict=True))}
    if not test.n and val is not None:
        classes, classes_of = val.classes, "val"
    return fields | {"classes_of": classes_of} | classes_to_json(classes, data.task, data.classes)


def _interval(test: Evaluation, data: Data) -> tuple[float, float] | None:
    """Wilson's 95 % interval for an accuracy; None for metrics that are no share of images, and without test images."""
    return wilson(round(test.score * test.n), test.n) if test.n and data.task.counts_images else None


def _thresholds(data: Data, val: Evaluation | None) -> dict[str, float] | None:
    """The probability above which each label is predicted, fitted to the validation images."""
    task = data.task
    if not task.has_thresholds or val is None:
        return None
    return dict(zip(data.classes, task.thresholds(task.probabilities(val.logits), data.val.labels), strict=True))


def method_of(settings: RunSettings) -> str:
    """Returns how the weights were trained, in a few words: "from scratch", "full", "head", "lora, rank 8", ..."""
    finetune = settings.finetune
    start = "from scratch" if settings.model.weights is None else "full"
    if finetune is None or (finetune.mode == "full" and not finetune.layer_decay):
        return start
    names = {"full": f"full, layer decay {finetune.layer_decay}", "lora": f"lora, rank {finetune.rank or 8}"}
    return names.get(finetune.mode, finetune.mode)
