"""Applies timm's mixup and cutmix to batches, with random numbers that depend only on (seed, step)."""

from __future__ import annotations

import numpy as np
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor

from engine.data.keyed import MIX, hash64
from engine.data.settings import AugmentSettings
from engine.tasks import ONE_LABEL, Task
from models.settings import UserError


class Mix:
    """Applies mixup (Zhang et al., 2018) and cutmix (Yun et al., 2019) to a batch and its reverse.

    If both are on, each batch gets one of them, with probability 1/2 each. timm pairs the images of an even batch; the
    last image of an odd batch stays as it is. timm draws from numpy's global generator, which is seeded by (seed, step)
    for the call and restored afterwards.

    Args:
        augment: the strengths of mixup and cutmix; at least one must be on.
        num_classes: the number of classes.
        label_smoothing: the share of each target that is spread over all classes.
        task: what the labels mean.

    Raises:
        UserError: the task has no soft targets, which mixing produces.
    """

    def __init__(
        self, augment: AugmentSettings, num_classes: int, label_smoothing: float, task: Task = ONE_LABEL
    ) -> None:
        mixup, cutmix = augment.mixing()
        assert mixup > 0 or cutmix > 0, "both are off: train on the labels as they are"
        if not task.soft_targets:
            key, alpha = ("mixup", mixup) if mixup > 0 else ("cutmix", cutmix)
            if augment.transforms:
                raise UserError(f"augment.transforms: {key} does not support multi-label targets; remove it")
            raise UserError(f"augment.{key} = {alpha}: not supported for multi-label targets; set it to 0")
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self._mixup = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)

    def __call__(self, images: Tensor, labels: Tensor, step: int, seed: int) -> tuple[Tensor, Tensor]:
        """Mixes images, float (B, C, H, W), and labels, int64 (B,); neither is changed.

        Returns:
            Images of the same shape, and soft targets, float32 (B, num_classes), smoothed; each row sums to one.
        """
        assert labels.ndim == 1, "one class for each image"
        even = len(labels) // 2 * 2
        targets = mixup_target(labels, self.num_classes, smoothing=self.label_smoothing)
        images = images.clone()
        state = np.random.get_state()
        np.random.seed(int(hash64(MIX, seed, step)[0] >> np.uint64(32)))
        try:
            images[:even], targets[:even] = self._mixup(images[:even], labels[:even])
        finally:
            np.random.set_state(state)
        return images, targets
