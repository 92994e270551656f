"""The score of each class: which is worst, and what a report says where classes are unequal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.data.balance import sizes
from engine.tasks import Task
from engine.wording import counted, few, shown


@dataclass(frozen=True)
class ClassScores:
    """What a model scores on each class of a split.

    Attributes:
        scores: of each class the share of its images that are right or, for many labels, the average precision;
            fractions, None for a class without images.
        images: the number of images of each class.
    """

    scores: list[float | None]
    images: list[int]

    @classmethod
    def of(cls, scores: Mapping[str, float | None] | None, images: Mapping[str, int] | None) -> ClassScores | None:
        """Returns scores by the names of the classes, in the order of `images`; None if some are missing, or do not fit
        together.

        Args:
            scores: of each class; None for one without images.
            images: the number of images of each class.
        """
        if not scores or not images or scores.keys() != images.keys() or not any(images.values()):
            return None
        if any((scores[name] is not None) != (images[name] > 0) for name in scores):
            return None
        return cls([scores[name] for name in images], list(images.values()))

    @property
    def mean(self) -> float:
        """The mean score of the classes that have images: the balanced accuracy, or the mean average precision."""
        known = [score for score in self.scores if score is not None]
        return sum(known) / len(known)

    @property
    def worst(self) -> int:
        """The position of the class with the lowest score; of several such classes that with the most images."""
        known = [(score, -n, i) for i, (score, n) in enumerate(zip(self.scores, self.images)) if score is not None]
        return min(known)[2]

    @property
    def worst_score(self) -> float:
        """The lowest score."""
        return min(score for score in self.scores if score is not None)

    def lines(self, task: Task, names: Sequence[str], split: str = "test", *, worst: bool = True) -> list[str]:
        """Returns lines for the terminal: the mean over classes, the worst class, and classes that have no image.

        Args:
            task: what the labels mean.
            names: of the classes.
            split: the images that were scored, "test" or "val".
            worst: whether to name the worst class, for reports that do not name it elsewhere.
        """
        classes = counted(sum(n > 0 for n in self.images), task.class_noun)
        lines = []
        if task.class_metric != task.main_metric:
            title = task.titles[task.class_metric]
            reason = f"{title}: the mean over {classes} of {sizes(self.images)} images"
            lines.append(f"{'balanced':<14}  {100 * self.mean:.2f} %  ({reason})")
        if worst:
            name, images = shown(names[self.worst]), counted(self.images[self.worst], "image")
            of_worst = f"{task.class_score_title}; {images}" if task.class_score_title else images
            lines.append(f"worst {task.class_noun:<8}  {name} {100 * self.worst_score:.2f} %  ({of_worst})")
        return lines + self.untested_lines(names, split)

    def untested_lines(self, names: Sequence[str], split: str = "test") -> list[str]:
        """Returns a line that names the classes without images; none if all have some."""
        untested = [shown(name) for name, n in zip(names, self.images, strict=True) if not n]
        return [f"{'not measured':<14}  {few(untested)}  (no {split} images)"] if untested else []


def pooled_scores(parts: Sequence[ClassScores]) -> ClassScores:
    """Returns the scores over several parts of the images, such as folds, or over several runs.

    The score of a class is the mean over the parts, weighted by its images in them: of accuracies this is the accuracy
    on all of its images.
    """
    images = [sum(counts) for counts in zip(*(part.images for part in parts), strict=True)]
    by_class = zip(*(zip(part.scores, part.images, strict=True) for part in parts), strict=True)
    totals = [sum(score * n for score, n in scores if score is not None) for scores in by_class]
    return ClassScores([total / n if n else None for total, n in zip(totals, images)], images)


def classes_to_json(classes: ClassScores | None, task: Task, names: Sequence[str]) -> dict[str, Any]:
    """Returns the entries of a JSON report about single classes, named as in `results.json`; none without scores.

    Args:
        classes: of one split, or of several parts together.
        task: what the labels mean.
        names: of the classes.
    """
    if classes is None:
        return {}
    worst = classes.worst
    mean = {} if task.class_metric == task.main_metric else {task.class_metric: classes.mean}
    return mean | {
        "class_accuracy" if task.one_class else "label_precision": dict(zip(names, classes.scores, strict=True)),
        "class_images": dict(zip(names, classes.images, strict=True)),
        "worst_class": names[worst],
        "worst_class_score": classes.worst_score,
        "worst_class_images": classes.images[worst],
    }
