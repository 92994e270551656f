"""What TensorBoard shows of a run besides curves and pictures: its text cards, and its row of the HPARAMS page."""

from __future__ import annotations

from typing import Any

from engine.measure.intervals import percent
from engine.runs.records.folds_report import FoldsReport
from engine.runs.records.results import Results
from engine.runs.tracking import Tracker
from engine.settings.layers import to_yaml
from engine.settings.schema import RunSettings
from engine.tables import Column, markdown
from engine.tasks import task_with_metric
from engine.wording import NOT_COUNTED, counted, fixed
from models.interface import merge_settings, merging_method


def settings_card(settings: RunSettings, command: str = "", tokens: list[int] | None = None) -> str:
    """Returns the card that a run begins with: its command, all of its settings, and the tokens after each block.

    Args:
        settings: of the run.
        command: as the user typed it; empty: it is not known, and the card says how to train by the settings below.
        tokens: the number of tokens after each block; None or empty: the model has none.
    """
    left = f"Tokens after each block: {', '.join(map(str, tokens))}\n\n" if tokens else ""
    command = command or f"tools/train.py --cfg settings.yaml name={settings.name}"
    about = "All settings, as `settings.yaml` in the run folder has them:"
    return f"{_fenced(command)}\n\n{left}{about}\n\n{_fenced(to_yaml(settings))}"


def results_card(results: Results) -> str:
    """Returns the card that a run ends with: the test metrics, and what the model and its training cost."""
    task = task_with_metric(results.metric)
    rows = [
        [f"test {task.titles.get(name, name)}", f"{100 * score:.2f} %"]
        for name, score in results.test_metrics.items()
        if score is not None
    ]
    if results.test_interval is not None:
        rows.insert(1, ["95 % interval", f"{percent(results.test_interval)} %"])
    if results.val_score is not None:
        rows.append([f"best val {task.titles.get(results.selecting)}", f"{100 * results.val_score:.2f} %"])
    rows += [
        ["test images", str(results.test_images)],
        ["best step", f"{results.best_step} of {results.steps}"],
        ["GMACs", NOT_COUNTED if results.gmacs is None else fixed(results.gmacs, 4)],
        ["parameters", f"{results.params / 1e6:.3f} M"],
        ["training", f"{results.seconds:.0f} s, {results.images_per_second:.0f} images/s"],
        ["precision", f"{results.precision}, {results.device}"],
    ]
    return markdown([Column("", words=True), Column(results.name)], rows)


def show_results(tracker: Tracker, settings: RunSettings, results: Results) -> None:
    """Gives TensorBoard the card that a run ends with, and its row of the HPARAMS page."""
    tracker.text(results.steps, "results", results_card(results))
    tracker.hparams(results.steps, *hparams_row(settings, results))


def folds_card(report: FoldsReport) -> str:
    """Returns the card of a report on all folds: the test score of each, their mean and their spread."""
    title = f"test {task_with_metric(report.metric).score_title}, %"
    rows = [[f"fold {fold.fold}", f"{100 * fold.test_score:.2f}", str(fold.images)] for fold in report.fold]
    rows += [
        ["mean", f"{100 * report.spread.mean:.2f}", str(report.spread.images)],
        ["standard deviation", f"{100 * report.spread.std:.2f}", ""],
    ]
    return markdown([Column(report.name, words=True), Column(title), Column("images")], rows)


def hparams_row(settings: RunSettings, results: Results) -> tuple[dict[str, float | str], dict[str, Any]]:
    """Returns the run's row of TensorBoard's HPARAMS page: results by title, and settings.

    Titles have capitals, and their order is that of the alphabet; see `Tracker.hparams`.
    """
    title = task_with_metric(results.metric).score_title
    measured = {
        f"{title[0].upper()}{title[1:]} (test), %": None if results.test_score is None else 100 * results.test_score,
        "GMACs": results.gmacs,
        "Images/s": results.images_per_second,
        "Merging": _merging(settings, results),
        "Model": results.model,
        "Parameters, M": results.params / 1e6,
        "Training, s": results.seconds,
    }
    where = {"name", "out"}  # say nothing that the run's name does not
    return {key: value for key, value in measured.items() if value is not None}, settings.model_dump(
        mode="json", exclude=where
    )


def _merging(settings: RunSettings, results: Results) -> str:
    """Returns the merging method, and how many tokens all blocks merge away; "none" if they merge none away."""
    merge = merge_settings(settings.model)
    if merge is not None and merge.per_image:
        return f"{merge.method}, a number of tokens that depends on the image"
    removed = sum(results.removed)
    return f"{merging_method(settings.model)}, {counted(removed, 'token')}" if removed else "none"


def _fenced(text: str) -> str:
    return f"```\n{text.rstrip()}\n```"
