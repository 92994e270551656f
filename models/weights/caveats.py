"""What a file of weights does not say, although the function depends on it."""

from __future__ import annotations

from timm.layers import QuickGELU
from torch import nn

from ..vit import Attention
from .files import State

USUAL_HEAD = 64  # channels of an attention head in published ViTs


def caveats(model: nn.Module, state: State) -> list[str]:
    """Returns what the user has to know about the model that the weights were trained in, as ends of log lines.

    Args:
        model: the model that the weights were loaded into.
        state: the content of the file.
    """
    found = []
    attention = next((module for module in model.modules() if isinstance(module, Attention)), None)
    if attention is not None and attention.head_dim != USUAL_HEAD:
        heads, width = attention.num_heads, attention.num_heads * attention.head_dim
        usual = f"model.num_heads={width // USUAL_HEAD}" if width % USUAL_HEAD == 0 else "another number"
        found.append(
            f"a file does not say how many attention heads its model has: {heads} of {attention.head_dim} channels are "
            f"computed here; published ViTs mostly have {USUAL_HEAD} channels, which is {usual}"
        )
    is_clip = any(name.endswith("ln_pre.weight") for name in state)
    if is_clip and not any(isinstance(module, QuickGELU) for module in model.modules()):
        found.append(
            "a file of CLIP does not say its activation: GELU is computed here; OpenAI's own weights need QuickGELU, "
            "as in timm's models with clip_quickgelu in their name"
        )
    return found
