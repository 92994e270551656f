"""Which folders are splits and which are classes, by names and contents. Where that is not clear, the user is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from engine.data.check.findings import Finding
from engine.data.names import nfc, split_of, splits_in
from engine.data.sources.scan import folders_in, has_images_itself, holds_images
from engine.wording import few
from models.settings import UserError

LAYOUT = "expected PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg and optionally the same in PATH/val and PATH/test"
SPLITS = ("train", "val", "test")


class Answers(NamedTuple):
    """How a user says what is not clear from the folders."""

    classes: str  # that the folders are classes
    splits: str  # that they are splits


BY_SETTING = Answers("set data.layout=classes", "set data.layout=splits")
IN_SPLITS = BY_SETTING._replace(classes=BY_SETTING.splits)  # for folders in train, val and test


def split_folders(
    root: Path, where: str, layout: str = "auto", answers: Answers = BY_SETTING
) -> tuple[dict[str, Path], list[Finding]]:
    """Finds the folders of the splits, whose names may be spelled in many ways (see `split_of`).

    They are splits if the one of training images holds folders. Otherwise the folders in `root` are the classes, and
    "train" is `root` itself; a class may then be called train, as in "car, plane, train".

    Args:
        root: the folder.
        where: the beginning of error messages, such as "data.path = 'scenes'".
        layout: "auto"; "classes": the folders are the classes in any case; "splits": they are the splits.
        answers: what errors suggest where it is not clear.

    Returns:
        The folder of each split, and warnings.

    Raises:
        UserError: there are no class folders, two folders are the same split, or it is not clear what the folders are.
    """
    folders = folders_in(root, where)
    if layout == "classes":
        if not folders:
            raise UserError(f"{where}: no class folders in it; {LAYOUT}")
        return {"train": root}, []
    others = [folder for folder in folders if split_of(folder.name) is None]
    if any(folders_in(folder, where) for folder in folders if split_of(folder.name) == "train"):
        roots = named_splits(root, where)
        if layout == "auto":
            _refuse_rivals(roots, others, where, answers)
        return _with_labels(roots, others, where, answers)
    split_names = [folder for folder in folders if folder not in others]
    if layout == "splits" or not others:
        raise UserError(_no_training_images(split_names, where, answers))
    return {"train": root}, _split_names_as_classes(split_names, others, where, answers)


def named_splits(root: Path, where: str) -> dict[str, Path]:
    """Returns the folder of each split by its name (see `split_of`), whatever it holds.

    Raises:
        UserError: two folders that are not empty are the same split, such as train and Training.
    """
    named: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for folder in folders_in(root, where):
        if split := split_of(folder.name):
            named[split].append(folder)
    roots = {}
    for split, folders in named.items():
        filled = [folder for folder in folders if len(folders) > 1 and holds_images(folder)]
        if len(filled) > 1:
            names = " and ".join(repr(folder.name) for folder in filled)
            raise UserError(f"{where}: {names} are names of one split, {split}; keep one, and move the other away")
        if folders:
            roots[split] = (filled or folders)[0]
    return roots


def refuse_nested(
    by_class: dict[str, list[Path]], folder: Path, root: Path, where: str, answers: Answers = BY_SETTING
) -> None:
    """Raises a UserError if the folders that were taken for classes are not, judging by the folders in them.

    Args:
        by_class: the images of each class.
        folder: the folder with a folder for each class.
        root: the folder that the user named.
        where: the beginning of error messages.
        answers: what errors suggest.
    """
    inside: dict[str, list[str]] = {}  # the folders in classes that hold no images themselves
    for name, paths in by_class.items():
        depths = [path.relative_to(folder / name).parts for path in paths]
        if paths and all(len(parts) > 1 for parts in depths):
            while all(len(parts) > 2 for parts in depths) and len({parts[0] for parts in depths}) == 1:
                depths = [parts[1:] for parts in depths]  # as archives have it that were unpacked into their own names
            inside[name] = sorted({parts[0] for parts in depths})
    filled = [name for name, paths in by_class.items() if paths]
    if len(filled) == 1 and inside:
        _refuse_wrapper(folder / filled[0], folder, root, where, alone=len(by_class) == 1)
    _refuse_splits(inside, filled, where, answers)
    if 2 * len(inside) > len(filled) > 1 and (shared := _shared(inside)):
        _refuse_same(list(inside), shared, where, answers)


def _refuse_splits(nested: Iterable[str], filled: Sequence[str], where: str, answers: Answers) -> None:
    """Raises a UserError if names such as "seg_train" and "seg_test" are among those of the classes.

    Args:
        nested: the classes that hold no images themselves.
        filled: all classes that have images.
        where: the beginning of the error message.
        answers: what it suggests.
    """
    splits = {name: splits_in(name) for name in filled}
    train = [name for name in nested if "train" in splits[name]]
    held_out = [name for name, found in splits.items() if found & {"val", "test"} and name not in train]
    if train and held_out:
        names = few([repr(name) for name in (*train, *held_out)])
        raise UserError(
            f"{where}: the folders {names} seem to be splits; call the folders with the classes in them train, val and "
            f"test, and move others away; if they are classes, {answers.classes}"
        )


def _refuse_same(folders: Sequence[str], shared: Sequence[str], where: str, answers: Answers) -> None:
    """Raises a UserError about folders that hold no images themselves, but folders of the same names, `shared`."""
    outer, inner = (few(list(map(repr, names))) for names in (folders, shared))
    if all(map(split_of, shared)):
        raise UserError(
            f"{where}: the folders {outer} hold splits: {inner}; give one of them as the path if it has all classes; "
            f"if they are the classes, move the splits up, as in {shared[0]}/{folders[0]}, or to use the images of all "
            f"splits together, {answers.classes}"
        )
    raise UserError(
        f"{where}: the folders {outer} hold no images themselves, but folders of the same names: {inner}; if those are "
        f"the classes, give one of the former as the path, or call them train, val and test; if {outer} are the "
        f"classes, {answers.classes}"
    )


def _refuse_rivals(roots: dict[str, Path], others: Sequence[Path], where: str, answers: Answers) -> None:
    """Raises a UserError if other folders are like the only split, so that all of them may be classes."""
    if set(roots) != {"train"}:
        return
    rivals = [
        repr(folder.name)
        for folder in others
        if folders_in(folder, where) and not has_images_itself(folder) and holds_images(folder)
    ]
    if rivals and not has_images_itself(roots["train"]):
        raise UserError(
            f"{where}: {roots['train'].name!r} may hold the training images or be a class beside {few(rivals)}; "
            f"{answers.splits} or {answers.classes}"
        )


def _with_labels(
    roots: dict[str, Path], others: Sequence[Path], where: str, answers: Answers
) -> tuple[dict[str, Path], list[Finding]]:
    """Returns the splits that hold class folders, and warnings about the other folders."""
    findings = []
    for split, folder in list(roots.items()):
        if folders_in(folder, where):
            continue
        if split == "val":
            raise UserError(f"{where}: no class folders in {folder.name}; {LAYOUT}")
        findings.append(
            Finding(
                f"no class folders in {folder.name}: it has no labels and is not used",
                fix="with data.name=kaggle its images are those to predict",
            )
        )
        del roots[split]
    if others:
        *most, last = [folder.name for folder in roots.values()]
        used = f"folders {', '.join(most)} and {last} are" if most else f"folder {last} is"
        text = f"only its {used} used, not {few([repr(folder.name) for folder in others])}"
        findings.insert(0, Finding(text, fix=f"if all of them are classes, {answers.classes}"))
    return roots, findings


def _no_training_images(split_names: Sequence[Path], where: str, answers: Answers) -> str:
    """Returns the error about a folder without class folders to train on."""
    labelled = [repr(folder.name) for folder in split_names if folders_in(folder, where)]
    if not labelled:
        return f"{where}: no class folders in it; {LAYOUT}"
    if len(labelled) > 1:
        return f"{where}: no training images, only {few(labelled)}; put a folder train beside them; {LAYOUT}"
    return (
        f"{where}: no training images, only {labelled[0]}; put a folder train beside it, give it as the path to train "
        f"on it, or {answers.classes} if it is a class; {LAYOUT}"
    )


def _split_names_as_classes(
    split_names: Sequence[Path], others: Sequence[Path], where: str, answers: Answers
) -> list[Finding]:
    """Returns a warning about a class that is called train, as vehicles are.

    Raises:
        UserError: other names of splits lie among the classes, where they hardly are classes themselves.
    """
    beside = few([repr(folder.name) for folder in others])
    doubtful = [repr(folder.name) for folder in split_names if folder.name.casefold() != "train"]
    if doubtful:
        one = len(doubtful) == 1
        raise UserError(
            f"{where}: {few(doubtful)} may be {'a split or a class' if one else 'splits or classes'} beside {beside}; "
            f"move {'it' if one else 'them'} elsewhere, or the classes into a folder train, or {answers.classes}"
        )
    return [
        Finding(
            f"{folder.name!r} is taken for a class beside {beside}",
            fix="if it holds the training images of all classes, put them into folders of their own",
        )
        for folder in split_names
    ]


def _refuse_wrapper(only: Path, folder: Path, root: Path, where: str, *, alone: bool) -> None:
    """Raises a UserError if a single folder holds the classes or splits, instead of being a class.

    Args:
        only: the only folder with images.
        folder: the folder that it lies in.
        root: the folder that the user named.
        where: the beginning of error messages.
        alone: whether there are no empty folders beside it.
    """
    while len(inner := [path for path in folders_in(only, where) if holds_images(path)]) == 1:
        if has_images_itself(inner[0]):
            return
        only = inner[0]
    if not alone and not any(split_of(path.name) == "train" for path in inner):
        return
    names = few([repr(path.name) for path in inner])
    advice = f"give {str(only)!r} as the path" if folder == root else f"move them up, into {folder.name!r}"
    shown = only.relative_to(root).as_posix()
    raise UserError(f"{where}: its folder {shown!r} holds no images itself, but the folders {names}; {advice}")


def _shared(inside: dict[str, list[str]]) -> list[str]:
    """Returns the names that folders in several classes have, if there are at least two in most of the classes."""
    counts = Counter(nfc(name) for names in inside.values() for name in names)
    common = {name for name, count in counts.items() if count > 1}
    like = [names for names in inside.values() if 2 * len({nfc(name) for name in names} & common) >= len(names)]
    return sorted(common) if len(common) > 1 and 2 * len(like) > len(inside) else []
