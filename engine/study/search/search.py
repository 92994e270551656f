"""A search as trials of optuna, each of which is a run of the study: asked, trained, stopped early, told."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from engine.files import write_text_atomic
from engine.runs.folder import RunFolder
from engine.settings.changes import decisive
from engine.settings.schema import RunSettings
from engine.study.execute.pool import Failure, Job, Wait, run_jobs
from engine.study.execute.progress import Progress
from engine.study.execute.study import Study, training
from engine.study.plan.folders import RUNS, Placed, again
from engine.study.plan.reading import as_overrides
from engine.study.plan.rows import PlannedRun, paths_of
from engine.study.search.journal import storage_of
from engine.study.search.scores import final_score, scores_of
from engine.study.search.space import checked, settings_of, suggest
from engine.tables import Column, markdown
from engine.tasks import title_of
from models.settings import UserError

JOURNAL = "search.journal"  # in the study folder: optuna's storage


def demand_optuna() -> Any:
    """Returns the module optuna.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("search: needs optuna; pip install -e '.[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Search:
    """A search in an open study.

    Args:
        study: the study; its plan has `search`.

    Raises:
        UserError: the plan does not fit a search, its settings are others than those of the trials that are there, or
            optuna is not installed, or the file of its trials is damaged.
    """

    def __init__(self, study: Study) -> None:
        plan = study.plan
        assert plan.settings.search is not None
        self.study, self.plan, self.search = study, plan, plan.settings.search
        self.optuna = demand_optuna()
        self.row, base, self.metric = checked(plan)
        self.epochs = base.train.epochs
        self.trials = self.optuna.create_study(
            storage=storage_of(self.optuna, study.folder / JOURNAL),
            study_name="search",
            direction="maximize",
            load_if_exists=True,
            pruner=self._pruner(),
        )
        self._check_same({**decisive(base), **paths_of(base), "metric": self.metric})
        running = self.optuna.trial.TrialState.RUNNING
        self.resumed = [trial.number for trial in self.trials.get_trials(states=[running])]

    def _pruner(self) -> Any:
        if not self.search.prune:
            return self.optuna.pruners.NopPruner()
        return self.optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=max(1, self.epochs // 4))

    def _check_same(self, base: dict[str, Any]) -> None:
        """Checks that earlier trials had the same settings besides the space, so that their scores can be compared."""
        text = json.dumps({key: value for key, value in base.items() if key not in self.search.space}, default=str)
        before = self.trials.user_attrs.get("base")
        if before is None:
            self.trials.set_user_attr("base", text)
        elif before != text:
            old, new = json.loads(before), json.loads(text)
            keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            raise UserError(
                f"{self.study.folder}: {keys[0]} = {new.get(keys[0])!r}: the trials there have {old.get(keys[0])!r}, "
                "and scores could not be compared; give the search another name= or out="
            )

    def execute(self) -> list[Failure]:
        """Runs the trials that are left.

        Returns:
            What failed.

        Raises:
            SystemExit: a signal stopped the search; all runs are saved.
        """
        left = len(self.resumed) + max(0, self.search.trials - len(self.trials.trials))
        progress = Progress([("trial", 1.0)] * left, self.plan.settings.jobs)
        return run_jobs(self._next, self.plan.settings.jobs, progress, self.plan.command)

    def _next(self) -> Job | Wait | None:
        """Returns the job of the next trial: one that was stopped, or a new one."""
        while True:
            if self.resumed:
                trial = self._trial(self.resumed.pop(0))
            elif len(self.trials.trials) < self.search.trials:
                # Seeded by the number of the trial: a search that was stopped goes on as it would have gone on.
                seed = (self.search.seed * 1_000_003 + len(self.trials.trials)) % 2**32
                self.trials.sampler = self.optuna.samplers.TPESampler(seed=seed, constant_liar=True)
                trial = self.trials.ask()
            else:
                return None
            try:
                values = suggest(trial, self.search)
            except ValueError as error:
                raise UserError(
                    f"{self.plan.path}: search.space: not the one of the trials in {self.study.folder} ({error}); "
                    "give the search another name= or out="
                ) from None
            try:
                settings = settings_of(self.plan, self.row, values)
            except UserError as error:  # values that are not allowed together
                self.trials.tell(trial, state=self.optuna.trial.TrialState.FAIL)
                print(f"trial_{trial.number:04d}: {' '.join(as_overrides(values))}: {error}", flush=True)
                continue
            return self._job(trial, values, settings)

    def _trial(self, number: int) -> Any:
        """Returns a trial that an earlier session began."""
        return self.optuna.trial.Trial(self.trials, self.trials.trials[number]._trial_id)

    def _job(self, trial: Any, values: dict[str, Any], settings: RunSettings) -> Job:
        name = f"trial_{trial.number:04d}"
        out = str(self.study.folder / RUNS)
        settings = settings.model_copy(update={"name": name, "out": out})
        run = RunFolder(Path(out) / name)
        placed = again(Placed(PlannedRun(name, settings, ()), run, "new"))
        job = training(self.study.folder, placed, self.plan.settings.jobs)
        pruned = False

        def unwanted() -> bool:
            nonlocal pruned
            pruned = pruned or self._falls_behind(trial, run)
            return pruned

        def ended() -> str:
            changed = " ".join(as_overrides(values))
            if run.read_results() is None and pruned:
                self.trials.tell(trial, state=self.optuna.trial.TrialState.PRUNED)
                return f"{name}: stopped early, {changed}"
            score = final_score(run, self.metric)
            self.trials.tell(trial, score)
            return f"{name}: validation {title_of(self.metric)} {100 * score:.2f} %, {changed}"

        job.title, job.kind, job.work = name, "trial", 1.0
        job.unwanted, job.ended = unwanted, ended
        job.failed = lambda: self.trials.tell(trial, state=self.optuna.trial.TrialState.FAIL)
        return job

    def _falls_behind(self, trial: Any, run: RunFolder) -> bool:
        """Tells optuna the validation scores that are new, by epoch; returns whether the trial is to be stopped."""
        if not self.search.prune:
            return False
        told = getattr(trial, "told_epochs", None)
        if told is None:
            frozen = self.trials.trials[trial.number]
            told = trial.told_epochs = len(frozen.intermediate_values)
        scores = list(scores_of(run, self.metric).values())
        for epoch in range(told, len(scores)):
            trial.report(scores[epoch], epoch + 1)
        trial.told_epochs = max(told, len(scores))
        return len(scores) > told and trial.should_prune()

    def table(self) -> tuple[list[Column], list[list[str]]]:
        """Returns the trials, the best first: number, state, score on the validation images, epochs, settings."""
        columns = [Column("trial"), Column("state", True), Column(f"validation {title_of(self.metric)}, %")]
        columns += [Column("epochs"), *(Column(key) for key in self.search.space)]
        trials = sorted(self.trials.trials, key=lambda t: (t.value is None, -(t.value or 0.0), t.number))
        cells = []
        for trial in trials:
            run = RunFolder(self.study.folder / RUNS / f"trial_{trial.number:04d}")
            score = "-" if trial.value is None else f"{100 * trial.value:.2f}"
            row = [str(trial.number), trial.state.name.lower(), score, str(len(scores_of(run, self.metric)))]
            values = {key: trial.params.get(key, "-") for key in self.search.space}
            cells.append([*row, *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values.values())])
        return columns, cells

    def report(self) -> list[str]:
        """Writes the table into the study folder, and returns lines that say what is best, and how to train it."""
        write_text_atomic(self.study.folder / "table.md", markdown(*self.table()) + "\n")
        complete = self.trials.get_trials(states=[self.optuna.trial.TrialState.COMPLETE])
        if not complete:
            return ["no trial has come to its end"]
        best = max(complete, key=lambda trial: (trial.value, -trial.number))
        values = suggest(self.optuna.trial.FixedTrial(best.params), self.search)
        settings = as_overrides(values)
        command = ["tools/train.py", "--cfg", self.row.cfg, *self.row.overrides, *settings, "seed=1", "name=best"]
        return [
            f"best            trial {best.number}: {' '.join(settings)}",
            "The best was chosen by this score, so it is too high for other images; no test image was looked at.",
            f"train it        {shlex.join(command)}",
        ]
