"""Numbers of patches that differ per image: images are matched one by one, and their answers are padded to a batch.

A method's adaptive form never sees padding nor another image, so that an image is matched in a batch as it is alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..settings import UserError
from .contract import Adaptive, Assignment, MergeContext, Merger


def assign_each(
    merger: Merger, metric: Tensor, amount: Adaptive, context: MergeContext, left: Sequence[int] | None, prefix: int
) -> tuple[Assignment, tuple[int, ...]]:
    """Matches every image by itself.

    Args:
        merger: a method with an adaptive form.
        metric: (B, N, D) float32; padding behind an image's own patches is not read.
        amount: what decides how many patches an image loses.
        context: of the batch.
        left: number of tokens of each image, prefix tokens included; None: N patches each.
        prefix: number of leading tokens that are not patches.

    Returns:
        An assignment to as many patches as the image with the most of them keeps, and the number of tokens that each
        image has then, prefix tokens included.

    Raises:
        UserError: the method has no adaptive form, or the model is being compiled or exported.
    """
    if merger.adaptive is None:
        raise UserError("merge.threshold: this method always removes a given number of patches; give r")
    if torch.compiler.is_compiling():
        raise UserError(
            "merge: the number of patches that is removed depends on the image, and a compiled or exported model has "
            "fixed shapes; give r, without threshold and adaptive"
        )
    batch, patches = int(metric.shape[0]), int(metric.shape[1])
    numbers = [patches] * batch if left is None else [count - prefix for count in left]
    answers = [
        in_order(merger.adaptive(metric[i : i + 1, :n], amount.value, _of_image(context, i, n)))
        for i, n in enumerate(numbers)
    ]
    return padded(answers, patches), tuple(prefix + int(answer.count) for answer in answers)


def in_order(answer: Assignment) -> Assignment:
    """The same assignment, but where it removes nothing patches keep their places, as they do with r = 0."""
    if answer.count < answer.index.shape[1]:
        return answer
    return answer._replace(index=answer.index.sort(dim=1).values)  # 0 ... N - 1, and still counted when it is traced


def padded(answers: Sequence[Assignment], patches: int) -> Assignment:
    """Joins the assignments of single images to that of a batch of so many patches.

    Padding joins the first patch. Its size is 0, so that it adds nothing to a mean.
    """
    if len(answers) == 1 and answers[0].index.shape[1] == patches:
        return answers[0]
    index = torch.cat([F.pad(answer.index, (0, patches - answer.index.shape[1])) for answer in answers])
    weight = None
    if any(answer.weight is not None for answer in answers):  # an image from which nothing is dropped may have none
        given = [torch.ones_like(a.index, dtype=torch.float32) if a.weight is None else a.weight for a in answers]
        weight = torch.cat([F.pad(w, (0, patches - w.shape[1]), value=1.0) for w in given])
    return Assignment(index, max(answer.count for answer in answers), weight, keep_norm=answers[0].keep_norm)


def _of_image(context: MergeContext, image: int, patches: int) -> MergeContext:
    """What a method may use of one image without padding."""
    one = (slice(image, image + 1), slice(patches))
    attention = None if context.attention is None else context.attention[one]
    position = None if context.position is None else context.position[one]
    return MergeContext(context.size[one], attention, context.grid, context.depth, position)
