"""What a run logs before it trains: on what, how many tokens merging removes, and what may not be meant."""

from __future__ import annotations

import logging

from engine.cost.budget import range_of
from engine.data.balance import advice, unequal_text
from engine.machine import device_name
from engine.settings.schema import RunSettings
from engine.train.build import Preparation
from engine.train.loop.checkpoints import Progress
from engine.wording import shown
from models.interface import removed_per_block, tokens_per_block

log = logging.getLogger("hybridmerge")


def describe(prepared: Preparation, progress: Progress, longer: str = "") -> None:
    """Logs what is about to be trained on what, and how many tokens merging really removes.

    Args:
        prepared: the run.
        progress: how far it has come.
        longer: what `check_unchanged` returned: by which setting the run becomes longer; "": it does not.
    """
    data, model, settings = prepared.data, prepared.model, prepared.settings
    log.info(
        "%s on %s, %s, from step %d of %d",
        settings.title,
        device_name(prepared.device),
        prepared.precision,
        progress.step,
        prepared.batches.total_steps,
    )
    log.info(
        "%d training, %d validation, %d test images, %d classes",
        len(data.train),
        len(data.val),
        len(data.test),
        len(data.classes),
    )
    if longer:
        log.info(
            "%s: from step %d on the learning rate follows the schedule of the new total, beginning at %.4g",
            longer,
            progress.step,
            prepared.optimization.rate.at(progress.step),
        )
    if not len(data.test):
        log.warning("%s: no test images, all train or validate; the accuracy is not measured", data.absent["test"])
    describe_balance(prepared)
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (data.mean, data.std))
    log.info("images of %s, normalised by mean %s and std %s", " x ".join(map(str, data.shape)), mean, std)
    if tokens := tokens_per_block(model):
        log.info("tokens removed by each block: %s; left: %s", removed_per_block(model), tokens)
    if prepared.teacher is not None:
        describe_teacher(settings)
    if prepared.cost.not_counted:
        log.warning("GMACs are not counted: %s; the rest of the run does not need them", prepared.cost.not_counted)
    warn_of_batch(settings)
    warn_of_select(prepared)
    if bounds := range_of(settings.model):
        log.info(
            "this is the middle: each training step draws r from %d to %d; validation and test stay there", *bounds
        )


def describe_balance(prepared: Preparation) -> None:
    """Logs that classes are unequal, and what the settings do about it or what could be done."""
    data, t, weights = prepared.data, prepared.settings.train, prepared.weights
    text = unequal_text(data.train_class_images, data.task)
    done = []
    if weights is not None:
        name = t.class_weights if isinstance(t.class_weights, str) else "given"
        least, most = (f"{weights[i]:.3g} ({shown(data.classes[i])})" for i in (weights.argmin(), weights.argmax()))
        done.append(f"train.class_weights = {name}: from {least} to {most}")
    if t.sampling == "balanced":
        done.append("train.sampling = balanced: each epoch draws an equal number of images from each class")
    if text or done:
        log.info("; ".join(filter(None, [text, *(done or [advice(data.task)])])))


def describe_teacher(settings: RunSettings) -> None:
    """Logs what teaches, and how much of the loss it decides."""
    distill = settings.train.distill
    parts = []
    if distill.logits:
        parts.append(f"{distill.logits:g} of the loss compares logits at temperature {distill.temperature:g}")
    if distill.tokens:
        parts.append(f"tokens are compared with weight {distill.tokens:g}")
    log.info("learns from train.teacher = %s: %s", settings.train.teacher, "; ".join(parts))


def warn_of_batch(settings: RunSettings) -> None:
    """Logs a warning if the learning rate was chosen for another number of images per step."""
    t = settings.train
    batch = t.batch_size * t.accumulate
    if not t.lr_batch or batch == t.lr_batch:
        return
    fix = f"train.lr={t.lr * batch / t.lr_batch:.3g}"
    if t.lr_batch % t.batch_size == 0:
        fix += f", or train.accumulate={t.lr_batch // t.batch_size}"
    log.warning(
        "train.lr = %g is for %d images per step (train.lr_batch), this run has %d: use %s",
        t.lr,
        t.lr_batch,
        batch,
        fix,
    )


def warn_of_select(prepared: Preparation) -> None:
    """Logs a warning if the metric that is to select the best epoch cannot."""
    data, select = prepared.data, prepared.settings.train.select
    if select is not None and not len(data.val):
        log.warning(
            "train.select = %s: there are no validation images (%s); the last epoch is used", select, data.absent["val"]
        )
    elif select == "top5" and len(data.classes) <= 5:
        log.warning(
            "train.select = top5: all %d classes are among the first 5, so that the first epoch is kept; use another",
            len(data.classes),
        )
