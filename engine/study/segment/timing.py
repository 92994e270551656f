"""Times the rows of a comparison against each other: from images to logits of pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.data.loading.loader import resized
from engine.study.segment.maps import Maps
from engine.study.segment.probe import Segmenter, linear_head
from engine.study.segment.rows import SegmentRow
from engine.study.segment.settings import SegmentSettings
from engine.study.segment.stage import CNNStage
from engine.study.segment.subject import Subject, batches
from engine.study.zeroshot.timing import time_ways
from models.settings import UserError
from models.timing import Times


def check_timed(settings: SegmentSettings) -> None:
    """Checks that the times of rows can be measured.

    Raises:
        UserError: the numbers of tokens of a row depend on weights that were trained, which are not kept.
    """
    trained = settings.probe.cnn is not None and settings.probe.cnn.model_lr is not None
    for name, way in settings.ways().items():
        if trained and way.merge is not None and way.merge.per_image:
            raise UserError(
                f"--time: row {name!r} merges as many tokens as its trained model says, which is not kept; leave out "
                "--time, or probe.cnn.model_lr"
            )


def time_rows(settings: SegmentSettings, subject: Subject, rows: Sequence[SegmentRow], rounds: int) -> Times:
    """Measures the whole way from images to logits of every row, on the first batch of test images, in rounds.

    Trained weights do not matter to the speed: the model has those that it was given, the probe random ones.

    Args:
        settings: the comparison; its batch size, device, precision and threads are used.
        subject: the images.
        rows: the rows to time.
        rounds: timed calls of each row.

    Returns:
        Milliseconds per image, `rounds` for each row's name.
    """
    classes, size = len(subject.images.classes), settings.model.img_size

    def complete(model: torch.nn.Module) -> Segmenter:
        probe = settings.probe
        maps, stage = Maps(model, probe.blocks, probe.grid), probe.cnn
        with torch.no_grad():
            width = maps(resized(images[:1], model.img_size)).shape[1]
        weight = torch.randn(classes, width)
        head = linear_head(weight, weight[:, 0].clone()) if stage is None else CNNStage(stage, width, classes)
        return Segmenter(maps, head.to(images.device), size).eval()

    images, _ = next(batches(settings, subject, subject.images.test, None))
    return time_ways(settings, images, rows, rounds, complete)
