"""Compares an exported file with the model that it was made from.

Converters are known to translate merging without an error and to give wrong numbers: a scatter that forgets to add, a
sort in the wrong direction, an r that became a constant. So the logits of the file, run by its own runtime, must be
those of the model.

One difference is legitimate. Two pairs of patches can be equally similar up to rounding, and then the last bit, which
depends on the runtime, decides which pair merges. An image that differs is therefore given to the model again with
noise far below one grey level. If the model itself then gives the file's logits, the image is at such a tie; otherwise
the file is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..settings import UserError

ABSOLUTE, RELATIVE = 1e-4, 1e-5  # largest allowed difference of a logit
NOISE = 1e-6  # for images whose pixels have a standard deviation near 1: a ten thousandth of a grey level
DRAWS = 64  # draws of noise for each image that differs
TIES = 1 / 8  # largest share of images that ties may explain
LEAST_SAME = 1 / 2  # share of images whose prediction an int8 file must keep

Runtime = Callable[[Tensor], Tensor]  # images (B, C, H, W) float32 -> logits (B, classes)


@dataclass(frozen=True)
class Agreement:
    """How well a file agrees with its model.

    Attributes:
        images: number of images that were compared.
        batch_sizes: sizes of the batches.
        difference: largest difference of a logit, except for images at ties; of an int8 file, for all images.
        spread: largest difference between the model's logits of two images.
        ties: number of images for which the model gives the file's logits only with noise.
        same_prediction: number of images with the same predicted class.
        operators: operators of this package that the file calls. Import the package's `merging` before loading it.
    """

    images: int
    batch_sizes: tuple[int, ...]
    difference: float
    spread: float
    ties: int
    same_prediction: int
    operators: tuple[str, ...] = ()


@torch.no_grad()
def compare(model: nn.Module, runtime: Runtime, images: Tensor, batch_sizes: Sequence[int] = (1, 16)) -> Agreement:
    """Compares a runtime's logits with the model's, in batches of each size.

    Args:
        model: the model, in evaluation mode.
        runtime: the file as a function.
        images: normalised images (n, C, H, W).
        batch_sizes: sizes of the batches.

    Raises:
        UserError: they differ, or the images cannot show whether they do.
    """
    difference, same, ties = 0.0, torch.ones(len(images), dtype=torch.bool), set()
    for size in batch_sizes:
        expected, actual, spread = _both(model, runtime, images, size)
        good = close(actual, expected)
        differ = (~good).nonzero().flatten().tolist()
        unexplained = differ if len(differ) > max(1, TIES * len(images)) else []
        unexplained = unexplained or [i for i in differ if not _at_a_tie(model, images[i], actual[i])]
        if unexplained:
            worst = (actual - expected)[unexplained].abs().max().item()
            raise UserError(
                f"the file does not give the model's logits: {len(unexplained)} of {len(images)} images differ by up "
                f"to {worst:.1e}, in batches of {size}; nothing was written"
            )
        ties |= set(differ)
        difference = max(difference, (actual - expected)[good].abs().max().item() if good.any() else 0.0)
        same &= actual.argmax(1) == expected.argmax(1)
    return Agreement(len(images), tuple(batch_sizes), difference, spread, len(ties), int(same.sum()))


@torch.no_grad()
def change(model: nn.Module, runtime: Runtime, images: Tensor, batch_sizes: Sequence[int] = (1, 16)) -> Agreement:
    """Measures how far a quantized file's logits are from the model's; arguments are those of `compare`.

    Raises:
        UserError: the file's predictions are mostly not the model's, or the images cannot show whether they are.
    """
    difference, same = 0.0, torch.ones(len(images), dtype=torch.bool)
    for size in batch_sizes:
        expected, actual, spread = _both(model, runtime, images, size)
        difference = max(difference, (actual - expected).abs().max().item())
        same &= actual.argmax(1) == expected.argmax(1)
    found = int(same.sum())
    if not found > LEAST_SAME * len(images):
        raise UserError(
            f"the int8 file gives the model's prediction for only {found} of {len(images)} images; nothing was "
            "written; calibrate on images of the kind that the model is for, or use fp32"
        )
    return Agreement(len(images), tuple(batch_sizes), difference, spread, 0, found)


def _both(model: nn.Module, runtime: Runtime, images: Tensor, size: int) -> tuple[Tensor, Tensor, float]:
    """Returns the logits of a model and of a file, and the largest difference between two images of the model's.

    Raises:
        UserError: the images cannot show what a file does, or the shapes differ.
    """
    expected = torch.cat([_logits(model, part) for part in images.split(size)])
    actual = torch.cat([runtime(part) for part in images.split(size)])
    spread = (expected.amax(0) - expected.amin(0)).max().item()
    if not spread > 10 * ABSOLUTE:
        raise UserError(f"the model gives {len(images)} images the same logits: they cannot show what a file does")
    if actual.shape != expected.shape:
        shapes = f"{tuple(actual.shape)} logits, the model {tuple(expected.shape)}"
        raise UserError(f"the file gives {shapes}; nothing was written")
    return expected, actual, spread


def close(actual: Tensor, expected: Tensor) -> Tensor:
    """Returns which rows of logits (B, classes) are equal up to rounding, (B,) bool; False for NaN."""
    return ((actual - expected).abs() <= ABSOLUTE + RELATIVE * expected.abs()).all(dim=1)


def random_images(shape: Sequence[int], count: int = 16) -> Tensor:
    """Returns images (count, C, H, W) of random coarse patterns with some noise, always the same ones.

    Args:
        shape: (C, H, W) of an image.
        count: number of images.
    """
    generator = torch.Generator().manual_seed(0)
    channels, height, width = shape
    pattern = torch.randn(count, channels, max(height // 16, 2), max(width // 16, 2), generator=generator)
    pattern = F.interpolate(pattern, size=(height, width), mode="bilinear")
    return pattern + 0.3 * torch.randn(count, *shape, generator=generator)


def images_to_check(images: Tensor | Sequence[int]) -> Tensor:
    """Returns images (n, C, H, W) in float32 on the CPU: those given, or random ones of the given size (C, H, W).

    Raises:
        UserError: neither of the two.
    """
    if isinstance(images, Tensor):
        if images.ndim == 4 and len(images) and images.is_floating_point():
            return images.detach().to("cpu", torch.float32)
        value = f"a tensor of {images.dtype} and shape {tuple(images.shape)}"
    else:
        if isinstance(images, Sequence) and len(images) == 3 and all(isinstance(n, int) and n > 0 for n in images):
            return random_images(images)
        value = f"a {type(images).__name__}"
    raise UserError(f"images: {value}; give normalised images (n, C, H, W), or the size (C, H, W) of one image")


@torch.no_grad()
def check_accepts(model: nn.Module, images: Tensor) -> None:
    """Raises UserError if a model gives no logits for the first of the images (n, C, H, W)."""
    try:
        _logits(model, images[:1])
    except (AssertionError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        shape = tuple(images.shape[1:])
        raise UserError(f"images: the model does not take images of shape {shape} (C, H, W): {reason}") from error


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """Returns the model's logits (B, classes).

    Raises:
        UserError: the model returns something else, or values that are not finite.
    """
    logits = model(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UserError(
            f"the model gives {shape} for {len(images)} image(s), not one row of logits for each; export a "
            "model with a pooled head"
        )
    if not logits.isfinite().all():
        raise UserError("the model's logits are not finite: no file can be checked against them; check its weights")
    return logits


def _at_a_tie(model: nn.Module, image: Tensor, actual: Tensor) -> bool:
    """Returns whether the model gives the logits `actual` for the image (C, H, W) with some noise added."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(DRAWS // 16):
        noise = NOISE * torch.randn(16, *image.shape, generator=generator)
        if close(model(image + noise), actual).any():
            return True
    return False
