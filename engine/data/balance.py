"""When classes are unequal: the one rule by which reports and warnings decide, and what they say about it."""

from __future__ import annotations

from collections.abc import Sequence

from engine.tasks import Task

UNEQUAL = 1.5  # the largest class has more than this many times the images of the smallest


def are_unequal(*parts: Sequence[int]) -> bool:
    """Returns whether the largest class has more than 1.5 times the images of the smallest one that has any.

    Args:
        parts: for each part of the data, such as training and test images, the number of images of each class; the
            classes of one unequal part suffice.
    """
    present = [[count for count in images if count] for images in parts]
    return any(counts and max(counts) > UNEQUAL * min(counts) for counts in present)


def unequal_text(images: Sequence[int], task: Task) -> str:
    """Returns what is said before training about classes that are unequal; "" if they are not.

    Args:
        images: the number of training images of each class.
        task: what the labels mean.
    """
    if not are_unequal(images):
        return ""
    noun = "classes" if task.class_noun == "class" else f"{task.class_noun}s"
    return f"{noun} are unequal: {sizes(images)} training images"


def advice(task: Task) -> str:
    """Returns what to do about classes that are unequal."""
    fixes = [] if not task.weighs_classes else ["train.class_weights=balanced"]
    fixes += ["train.sampling=balanced"] if task.one_class else []
    look = f"look at {task.titles[task.class_metric]} and at the worst {task.class_noun}" if task.class_metric else ""
    return "; ".join(filter(None, [look, f"{' or '.join(fixes)} makes rare ones count more" if fixes else ""]))


def sizes(images: Sequence[int]) -> str:
    """Returns the sizes of the smallest and the largest class that have images, such as "5 to 95"."""
    present = [count for count in images if count]
    least, most = min(present), max(present)
    return str(least) if least == most else f"{least} to {most}"
