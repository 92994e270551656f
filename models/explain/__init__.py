"""Explanations: which parts of an image a model's answer depends on, exact in patches also where tokens were merged.

    model = timm.create_model("deit_tiny_patch16_224", pretrained=True)
    wrap(model, method="tome", r=13)
    found = explain(model, images, method="gradient_rollout")
    found.relevance  # (B, 14, 14): of the patches of the classes that the model predicts

Every method is a function of a model, images and classes, and an entry in EXPLAINERS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..modes import in_evaluation_mode
from ..settings import UserError, nearest
from .attention import gradient_rollout, rollout
from .evaluating import Progress, giving_logits
from .found import Found
from .gradcam import gradcam
from .lime import lime
from .perturbation import integrated_gradients, occlusion, rise

__all__ = ["EXPLAINERS", "Explainer", "Explanation", "Found", "explain"]


@dataclass(frozen=True)
class Explainer:
    """An entry of EXPLAINERS.

    Args:
        compute: (model in evaluation mode, images (B, C, H, W) normalised, target (B,), **options) -> a map (B, rows,
            columns), or `Found`. Its keyword-only arguments are the method's options, except `progress`.
        line: what it shows, in one line.
        signed: whether negative relevance means evidence against the class.

    Attributes:
        options: name -> default of the method's options.
        reports: whether the method takes `progress`.
    """

    compute: Callable[..., Tensor | Found]
    line: str
    signed: bool = False
    options: Mapping[str, Any] = field(init=False)
    reports: bool = field(init=False)

    def __post_init__(self) -> None:
        parameters = signature(self.compute).parameters.values()
        options = {p.name: p.default for p in parameters if p.kind is Parameter.KEYWORD_ONLY}
        object.__setattr__(self, "reports", options.pop("progress", ...) is not ...)
        object.__setattr__(self, "options", options)


EXPLAINERS: dict[str, Explainer] = {
    "gradcam": Explainer(gradcam, "Grad-CAM on the last feature map, or on the last block's tokens"),
    "rollout": Explainer(rollout, "attention rollout, through merging; the same for every class"),
    "gradient_rollout": Explainer(gradient_rollout, "attention times its gradient, rolled out through merging"),
    "integrated_gradients": Explainer(
        integrated_gradients, "gradients on the way from the image's mean colour to the image", signed=True
    ),
    "occlusion": Explainer(occlusion, "how far the logit falls without each square of pixels", signed=True),
    "rise": Explainer(rise, "the expected probability where a pixel is shown, over random masks"),
    "lime": Explainer(lime, "the weights of a linear model of which regions are shown", signed=True),
}


class Explanation(NamedTuple):
    """What `explain` returns, for B images.

    Attributes:
        relevance: (B, rows, columns) float32, in the resolution of the method: patches, cells of a map, or pixels.
        target: (B,) int64: the classes that are explained.
        logits: (B, classes): the model's answer.
        notes: what the method says about each image besides.
    """

    relevance: Tensor
    target: Tensor
    logits: Tensor
    notes: Sequence[Mapping[str, Any]]


def explain(
    model: nn.Module,
    images: Tensor,
    method: str = "gradcam",
    target: Tensor | int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Explanation:
    """Explains a model's answers.

    Args:
        model: a classifier, wrapped or not; ours, timm's, torchvision's or one of transformers. It is left as it was.
        images: (B, C, H, W), normalised as the model expects, on its device.
        method: a key of EXPLAINERS.
        target: the class of each image (B,), or one class for all; None: the class that the model predicts.
        progress: called with how much is done, and of how much, by methods that take long.
        options: the method's own, such as at="tokens" of gradcam.

    Returns:
        The explanation, without gradients.

    Raises:
        UserError: an unknown method, option or class, or a model that the method does not serve, with the reason.
    """
    if method not in EXPLAINERS:
        raise UserError(f"--method {method}: unknown; {nearest(method, list(EXPLAINERS))}")
    explainer = EXPLAINERS[method]
    if strange := next((name for name in options if name not in explainer.options), None):
        known = ", ".join(explainer.options) or "none"
        raise UserError(f"{strange}: not an option of {method}; known: {known}")
    if explainer.reports:
        options["progress"] = progress
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with in_evaluation_mode(model), giving_logits(model):
        with torch.no_grad():
            logits = model(images)
        if not isinstance(logits, Tensor):
            raise UserError(
                f"--method {method}: the model returns a {type(logits).__name__}; give one that returns logits"
            )
        classes = _target(target, logits)
        try:
            for parameter in frozen:  # gradients with respect to weights are not needed
                parameter.requires_grad_(False)
            found = explainer.compute(model, images.detach().requires_grad_(), classes, **options)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
    if isinstance(found, Tensor):
        found = Found(found, [{}] * len(images))
    return Explanation(found.relevance.detach().float(), classes, logits, found.notes)


def _target(target: Tensor | int | None, logits: Tensor) -> Tensor:
    """The class of each image, (B,)."""
    if target is None:
        return logits.argmax(1)
    classes = torch.as_tensor(target, device=logits.device).expand(len(logits))
    if int(classes.min()) < 0 or int(classes.max()) >= logits.shape[1]:
        wrong = int(classes.max() if int(classes.min()) >= 0 else classes.min())
        raise UserError(f"--target {wrong}: no such class; the model has 0 to {logits.shape[1] - 1}")
    return classes.long()
