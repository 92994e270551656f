"""Loads weights into a model: determines which entries fit, checks them, loads them all at once, and reports on it."""

from __future__ import annotations

from torch import nn

from ..settings import UserError
from .caveats import caveats
from .faults import demand_same_function
from .files import State, read_path
from .fit import best_fit
from .hubs import HUBS
from .report import Report


def load_with_classifier(model: nn.Module, source: str, key: str) -> Report:
    """As `load_weights`, for a model that is used as it is: the classifier must be among the weights, and fit.

    Args:
        model: as of `load_weights`.
        source: as of `load_weights`.
        key: where the user named the weights, such as "--weights FILE", for the message.

    Raises:
        UserError: as of `load_weights`, or the classifier does not fit.
    """
    report = load_weights(model, source)
    if report.replaced:
        raise UserError(
            f"{key}: its classifier does not fit ({report.replaced[0]}); give weights with the classifier, or "
            "model.num_classes as in the weights"
        )
    return report


def load_weights(model: nn.Module, source: str, state: State | None = None) -> Report:
    """Loads weights into `model`, converted to its layout. On an error the model is left unchanged.

    Args:
        model: one of MODELS, or a timm or torchvision model. A hybrid takes a ViT's weights into its `vit`.
        source: timm:NAME, torchvision:NAME or torchvision:NAME.WEIGHTS, a file (.pth, .pt, .bin, .tar, .ckpt,
            .safetensors, Google's .npz), or a run folder, whose best.pt is used.
        state: the content of `source`, if it has already been read.

    Raises:
        UserError: the weights cannot be found or read, or the model would not compute with them what they were trained
            for; see `demand_same_function`.
    """
    library, colon, name = source.partition(":")
    from_file = state is None and not (colon and library in HUBS)
    if from_file:
        state = read_path(source, sum(value.numel() * value.element_size() for value in model.state_dict().values()))
    elif state is None:
        state = HUBS[library](name)
    fit = best_fit(source, model, state)
    demand_same_function(fit, model, state)
    model.load_state_dict(fit.tensors, strict=False)
    fit.report.caveats = caveats(model, state) if from_file else []
    return fit.report
