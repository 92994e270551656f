"""`RunFolder`: a run on disk. This is the only place that knows the names of the files in it and how to read them.

Training writes a run folder, and all other tools need only the run folder. With `split.folds` there is also a folder of
all folds, which holds a run folder for each fold (`fold0`, `fold1`, ...) and no model of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from engine.files import write_json_atomic, write_text_atomic
from engine.runs.edited import check_own, check_unedited, sound_record
from engine.runs.lock import Lock, take_lock
from engine.runs.records.folds_report import FoldsReport
from engine.runs.records.record import read_record
from engine.runs.records.results import Results
from engine.settings.changes import decisive, goes_on
from engine.settings.layers import load_settings, to_yaml
from engine.settings.schema import RunSettings
from models.budget import solve
from models.interface import merge_settings
from models.settings import UserError

Which = Literal["best", "last"]
EARLIER = re.compile(r"last-([1-9][0-9]{0,3})\.pt")  # names of checkpoints before last.pt


def with_budget(settings: RunSettings) -> RunSettings:
    """Returns the settings from which a model is built, with `merge.target_gmacs` or `target_ratio` solved.

    A run folder stores the settings as the user gave them.
    """
    return settings.model_copy(update={"model": solve(settings.model)})


class RunFolder:
    """A run folder, or a folder of all folds. It need not exist yet; see `is_run`.

    The settings are parsed, and a budget in them is solved, only once for each object.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings_file = self.path / "settings.yaml"
        self.results_file = self.path / "results.json"
        self.folds_file = self.path / "folds.json"  # the report on all folds, in their common folder
        self.metrics_file = self.path / "metrics.jsonl"
        self.predictions_file = self.path / "predictions.csv"
        self.confusion_picture = self.path / "confusion.png"
        self.confused_picture = self.path / "confused.png"
        self.log_file = self.path / "log.txt"
        self._changed: dict[tuple[str, ...], RunSettings] = {}
        self._solved: dict[tuple[str, ...], RunSettings] = {}

    @classmethod
    def at(cls, folder: RunFolder | str | Path) -> RunFolder:
        """Returns `folder` itself if it is a RunFolder, which keeps what it has read, or a RunFolder for the path."""
        return folder if isinstance(folder, RunFolder) else cls(folder)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def checkpoint(self, which: Which = "best") -> Path:
        """Returns the path of a checkpoint: the best weights by validation, or the last, for resuming the run."""
        return self.path / f"{which}.pt"

    @property
    def last_checkpoints(self) -> list[Path]:
        """The checkpoints from which the run can be resumed, the newest first: last.pt, last-1.pt before it, ..."""
        earlier = {
            int(found[1]): path for path in self.path.glob("last-*.pt") if (found := EARLIER.fullmatch(path.name))
        }
        files = [self.checkpoint("last"), *(earlier[number] for number in sorted(earlier))]
        return [file for file in files if os.path.lexists(file)]

    def earlier_checkpoint(self, number: int) -> Path:
        """Returns the path of the checkpoint that was `last.pt` before the last `number` ones were saved."""
        return self.path / f"last-{number}.pt"

    @property
    def _files(self) -> tuple[Path, ...]:
        """The files that training writes, besides checkpoints."""
        return (
            self.settings_file,
            self.results_file,
            self.folds_file,
            self.metrics_file,
            self.predictions_file,
            self.confusion_picture,
            self.confused_picture,
            self.log_file,
        )

    def check_files(self) -> None:
        """Checks that nothing but a file stands where training writes one.

        In the place of last.pt anything may stand: it is set aside like a damaged checkpoint.

        Raises:
            UserError: a folder, a pipe or a device is in the way.
        """
        checkpoints = (self.checkpoint("best"), *self.last_checkpoints)
        for file in (*self._files, *(path for path in checkpoints if path != self.checkpoint("last"))):
            if file.exists() and not file.is_file():
                kind = "a folder" if file.is_dir() else "a pipe or device"
                raise UserError(f"{file}: is {kind}, where training writes a file; move it away")

    def owns(self, file: Path) -> bool:
        """Returns whether `file` is one that training writes into this run folder, which no tool may overwrite."""
        files = (*self._files, self.checkpoint("best"), self.checkpoint("last"))
        return self.is_run and (file.name in {own.name for own in files} or bool(EARLIER.fullmatch(file.name)))

    def lock(self, *, resume: bool = False) -> Lock:
        """Creates the folder if it is missing and locks it for this process; see `take_lock`."""
        return take_lock(self.path, resume=resume)

    # Settings

    @property
    def is_run(self) -> bool:
        """Whether the training of a run, or of all folds, has begun in this folder."""
        return self.settings_file.is_file()

    @property
    def settings(self) -> RunSettings:
        """The settings that the run was trained with, as the user gave them: a budget is not solved.

        Raises:
            UserError: this is not a run folder.
        """
        return self.settings_with(())

    @property
    def solved_settings(self) -> RunSettings:
        """The settings from which the model is built, with `merge.target_gmacs` or `target_ratio` solved."""
        return self.solved_settings_with(())

    def settings_with(self, overrides: tuple[str, ...] | list[str]) -> RunSettings:
        """Returns the run's settings with overrides such as "merge.r=4" applied; a budget is not solved.

        Raises:
            UserError: this is not a run folder, an override is wrong, or settings.yaml or a checkpoint was exchanged
                since the training.
        """
        key = tuple(overrides)
        if key not in self._changed:
            if not self.is_run:
                raise UserError(
                    f"{self}: not a run folder (it has no {self.settings_file.name}); give the folder that training "
                    "printed"
                )
            settings = load_settings(str(self.settings_file), key)
            if key:
                self._check_learned_metric(settings)
            else:
                check_unedited(settings, self.settings_file, (self.checkpoint("best"), *self.last_checkpoints))
            self._changed[key] = settings
        return self._changed[key]

    def solved_settings_with(self, overrides: tuple[str, ...] | list[str]) -> RunSettings:
        """Returns `settings_with(overrides)` with a budget solved."""
        key = tuple(overrides)
        if key not in self._solved:
            self._solved[key] = with_budget(self.settings_with(key))
        return self._solved[key]

    @property
    def trained_settings(self) -> Mapping[str, Any]:
        """The settings that the last intact checkpoint was trained with, for `changed_on_resume` and `goes_on`.

        Those that it does not record, since an older version wrote it, are taken from settings.yaml.

        Raises:
            UserError: this is not a run folder, or it was edited since the training.
        """
        settings = self.settings  # checks that they were not edited
        return {**decisive(settings), **sound_record(self.last_checkpoints, settings)}

    def _check_learned_metric(self, settings: RunSettings) -> None:
        """Refuses merging by a learned metric if the weights have none, and the other way round."""
        trained, merge = (merge_settings(s.model) for s in (self.settings, settings))
        if not trained or not merge or (trained.compared_by() == "learned") == (merge.compared_by() == "learned"):
            return
        metric = f"model.merge.metric = {merge.compared_by()!r} ({merge.method})"
        if merge.compared_by() == "learned":
            problem, fix = "has no learned metric", "use a method and a merge.metric that learn nothing"
        else:
            problem, fix = "has a learned metric", "add merge.metric=learned"
        raise UserError(f"{metric}: {self} {problem} among its weights; {fix}")

    def write_settings(self, settings: RunSettings) -> None:
        """Writes the settings of a run that starts or resumes.

        Raises:
            UserError: the disk is full, or the folder is read-only or gone.
        """
        write_text_atomic(self.settings_file, to_yaml(settings))
        self._changed, self._solved = {}, {}

    # Results

    @property
    def is_finished(self) -> bool:
        """Whether the run has been trained and tested."""
        return self.results_file.is_file()

    def read_results(self) -> Results | None:
        """Returns the run's results; None if it is not finished.

        Raises:
            UserError: results.json is damaged, or was written by a newer version.
        """
        results = read_record(self.results_file, Results.from_json, f"test again with --resume {self}")
        if results is not None and self.is_run:
            check_own(results, self.results_file, self.settings, self.checkpoint("best"))
        return results

    def write_results(self, results: Results) -> None:
        """Writes `results.json`.

        Raises:
            UserError: the disk is full, or the folder is read-only or gone.
        """
        write_json_atomic(self.results_file, results.to_json())

    # Folds

    @property
    def holds_folds(self) -> bool:
        """Whether this is the folder of all folds and not a run of its own.

        Raises:
            UserError: this is not a run folder.
        """
        return self.settings.split.all_folds

    def read_folds_report(self) -> FoldsReport | None:
        """Returns the report on all folds; None if there is none.

        Raises:
            UserError: folds.json is damaged, or was written by a newer version.
        """
        return read_record(self.folds_file, FoldsReport.from_json, f"make it again with --resume {self}")

    def write_folds_report(self, report: FoldsReport) -> None:
        """Writes `folds.json`.

        Raises:
            UserError: the disk is full, or the folder is read-only or gone.
        """
        write_json_atomic(self.folds_file, report.to_json())

    def fold(self, number: int) -> RunFolder:
        """Returns the run folder of a fold, counted from 0, in this folder of all folds."""
        return RunFolder(self.path / f"fold{number}")

    @cached_property
    def folds(self) -> list[RunFolder]:
        """The run folders of all folds in this folder, whether or not they exist yet."""
        assert self.settings.split.folds
        return [self.fold(number) for number in range(self.settings.split.folds)]

    def unfinished_folds(self) -> list[int]:
        """Returns the numbers of the folds that are not finished, or have fewer epochs than all folds are to have."""
        return [number for number, fold in enumerate(self.folds) if not self._is_complete(fold)]

    def _is_complete(self, fold: RunFolder) -> bool:
        return fold.is_finished and not (fold.is_run and goes_on(fold.trained_settings, self.settings))

    def folder_of_folds(self) -> RunFolder:
        """Returns the folder of all folds that contains this fold's run folder.

        Raises:
            UserError: the folder was renamed, so that it no longer says which fold it is.
        """
        number = self.settings.split.fold
        name = f"fold{number}"
        if self.path.absolute().name != name:
            raise UserError(f"--resume {self}: fold {number} of split.folds; give the folder its name {name} again")
        return RunFolder(self.path.parent if self.path.name else self.path.absolute().parent)
