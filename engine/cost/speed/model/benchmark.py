"""Times models against each other in everything that is asked for, and records the time of every round."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from engine.cost.speed.model.calls import Step, images_of, prepare
from engine.cost.speed.model.candidates import Candidate
from engine.cost.speed.model.kernels import AUTO, NONE
from engine.cost.speed.model.memory import Job, peak_of
from engine.cost.speed.model.share import Clock
from engine.cost.speed.model.variants import RUNTIMES, Variant
from models.merging import MERGERS
from models.settings import UserError
from models.timing import timed

LEAST_MS = 20.0  # shorter steps are called several times in a round
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}  # of files, by format

File = tuple[str, str | None, bool]  # method, format, int8
Files = dict[File, Path]


@dataclass
class Row:
    """What was measured of a variant.

    Attributes:
        variant: what was run.
        device: the type of device.
        gmacs: of one image; None if not counted.
        attention: the implementation of attention that ran.
        ms: milliseconds of a step, in each round.
        merging_ms: milliseconds of matching and merging in each of the passes `clocked_ms`; empty if not measured.
        clocked_ms: milliseconds of passes in which each merge was timed, which makes them slower.
        peak_mib: peak memory in MiB; None if not measured.
        peak_failed: why the memory could not be measured; None if it was, or was not asked for.
        failed: why it was not timed; None if it was.
    """

    variant: Variant
    device: str
    gmacs: float | None
    attention: str = NONE
    ms: list[float] = field(default_factory=list)
    merging_ms: list[float] = field(default_factory=list)
    clocked_ms: list[float] = field(default_factory=list)
    peak_mib: float | None = None
    peak_failed: str | None = None
    failed: str | None = None

    def record(self) -> dict[str, Any]:
        """Returns the row as JSON has it."""
        values = asdict(self)
        asked = values.pop("variant")
        return {**asked, "asked_attention": asked["attention"], **values}


def measure(
    models: Mapping[str, Candidate],
    wanted: Sequence[Variant],
    repeats: int,
    device: torch.device,
    *,
    warmup: int = 2,
    memory: bool = False,
    progress: Callable[[str], object] = lambda line: None,
) -> list[Row]:
    """Times all variants in rounds, so that a machine that slows down slows all of them alike.

    Args:
        models: method, or name of another model -> the model.
        wanted: the variants.
        repeats: timed rounds.
        device: the device to compute on.
        warmup: rounds before them.
        memory: measure the peak memory too, each variant in a process of its own.
        progress: is given a line before each part that takes long.

    Returns:
        A row for each variant. One that cannot be run, or whose memory cannot be measured, says why; the others are
        measured.

    Raises:
        UserError: none can be run.
    """
    rows = [Row(variant, device.type, models[variant.method].gmacs) for variant in wanted]
    for candidate in models.values():
        candidate.model.to(device)
    with tempfile.TemporaryDirectory() as folder:
        files = _export(models, rows, Path(folder), progress)
        calls: dict[str, Step] = {}
        clocks: dict[str, Clock] = {}
        for number, row in enumerate(rows):
            progress(f"preparing {number + 1} of {len(rows)}: {title(row.variant)}")
            with _failing(row):
                call = _prepared(row, models[row.variant.method], device, files)
                calls[str(number)] = call
                if _has_share(row.variant):
                    clocks[f"clock {number}"] = Clock(models[row.variant.method].model, call, device)
        if not calls:
            raise UserError(f"{title(rows[0].variant)}: cannot be run: {rows[0].failed}")
        progress(f"timing {len(calls)}, {warmup} + {repeats} rounds")
        times = timed({**calls, **clocks}, repeats, device, warmup=warmup, least_ms=LEAST_MS)
        for number, row in enumerate(rows):
            row.ms = times.get(str(number), [])
            if clock := clocks.get(f"clock {number}"):
                row.merging_ms, row.clocked_ms = clock.merging[warmup:], clock.passes[warmup:]
        if memory:
            _measure_memory(models, rows, device, files, progress)
    return rows


def title(variant: Variant) -> str:
    """Returns a variant in words."""
    attention = "" if variant.attention == AUTO else f", {variant.attention} attention"
    return (
        f"{variant.method}, {variant.step}, batch {variant.batch_size}, {variant.runtime}, {variant.precision}"
        f"{attention}"
    )


def _has_share(variant: Variant) -> bool:
    return variant.method in MERGERS and variant.step == "forward" and variant.runtime == "eager"


def _export(
    models: Mapping[str, Candidate], rows: Sequence[Row], folder: Path, progress: Callable[[str], object]
) -> Files:
    """Exports the models that run from files; the rows of one that cannot be exported say why."""
    files: Files = {}
    wanted = [row for row in rows if RUNTIMES[row.variant.runtime].format]
    for number, method in enumerate(dict.fromkeys(row.variant.method for row in wanted)):
        from models.export import convert_onnx, export_model, random_images

        progress(f"exporting {method} to ONNX")
        settings, path = models[method].settings, folder / f"{number}.onnx"
        images = random_images((settings.in_chans, settings.img_size, settings.img_size))
        own = [row for row in wanted if row.variant.method == method]
        with _failing(*own):
            export_model(models[method].model, "onnx", path, images, {"method": method})
        for key in dict.fromkeys(_file_of(row.variant) for row in own if not row.failed):
            _, to, int8 = key
            files[key] = path if (to, int8) == ("onnx", False) else folder / f"{number}_{int8}{SUFFIXES[to]}"
            if files[key] != path:
                progress(f"converting {method}: {to}{', int8' if int8 else ''}")
                with _failing(*(row for row in own if _file_of(row.variant) == key)):
                    convert_onnx(path, files[key], images if int8 else None)
    return files


def _file_of(variant: Variant) -> File:
    """Returns which file a variant runs; its format is None if it runs none."""
    return variant.method, RUNTIMES[variant.runtime].format, variant.precision == "int8"


def _prepared(row: Row, candidate: Candidate, device: torch.device, files: Mapping[File, Path]) -> Step:
    """Returns a row's step, run once, so that it is compiled."""
    variant = row.variant
    if row.failed:
        raise UserError(row.failed)
    images = images_of(candidate.settings, variant.batch_size, device)
    call, row.attention = prepare(variant, candidate.model, images, files.get(_file_of(variant)))
    if variant.attention != AUTO and row.attention == NONE:
        raise UserError(f"--attention {variant.attention}: has no effect on a model without attention; leave it out")
    call()
    return call


def _measure_memory(
    models: Mapping[str, Candidate],
    rows: Sequence[Row],
    device: torch.device,
    files: Mapping[File, Path],
    progress: Callable[[str], object],
) -> None:
    for number, row in enumerate(rows):
        if row.failed is None:
            progress(f"memory of {number + 1} of {len(rows)}: {title(row.variant)}")
            settings, file = models[row.variant.method].settings, files.get(_file_of(row.variant))
            try:
                row.peak_mib = peak_of(Job(row.variant, settings, str(device), torch.get_num_threads(), file))
            except Exception as error:  # the times are not lost
                row.peak_failed = _reason(error)


@contextmanager
def _failing(*rows: Row) -> Iterator[None]:
    """Has rows say why they cannot be run, in place of an error."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except Exception as error:  # compilers and kernels raise anything
        for row in rows:
            row.failed = _reason(error)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
