"""What classifiers of Hugging Face's transformers need before they are exported."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

UNMASKED = "hybridmerge_unmasked"


class Logits(nn.Module):
    """Images -> logits alone, of a model that returns them among other outputs.

    Args:
        model: a model of transformers, which is changed: its attention takes no mask.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        without_masks(model)

    def forward(self, images: Tensor) -> Any:
        """Images (B, C, H, W) -> logits (B, classes); what the model returns, if it has none."""
        out = self.model(images)
        return getattr(out, "logits", out)


def without_masks(model: nn.Module) -> nn.Module:
    """Has a model of transformers make no attention masks, in place, and returns it.

    ViT, DeiT and DINOv2 make a mask that hides nothing, but only while torch.export traces them, and a mask does not
    follow merged tokens. A mask that is given to the model has no effect afterwards.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # transformers makes no mask for an implementation of attention that has no function for masks.
    AttentionInterface.register(UNMASKED, sdpa_attention_forward)
    for module in model.modules():
        if (config := getattr(module, "config", None)) is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = UNMASKED
    return model
