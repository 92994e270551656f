"""Small models of the libraries with random weights, and their files as others publish them."""

import numpy as np
import torch
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from models import build_model

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def random(model, seed=0):
    """Every parameter and running statistic drawn: nothing that is zero or one by default hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=generator)
                value.copy_(1 + drawn.abs() if name.endswith("running_var") else 0.2 * drawn)
    return model.eval()


def timm_vit(seed=0, num_classes=7, **options):
    return random(VisionTransformer(**{**TINY, "num_classes": num_classes, **options}), seed)


def distilled(seed=0, num_classes=7, **options):
    return random(VisionTransformerDistilled(**{**TINY, "num_classes": num_classes, **options}), seed)


def timm_beit(seed=0, num_classes=7, **options):
    return random(Beit(**{**TINY, "num_classes": num_classes, "init_values": 0.1, **options}), seed)


def torchvision_vit(seed=0, num_classes=7, image_size=32):
    model = TorchvisionViT(
        image_size=image_size,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=128,
        num_classes=num_classes,
    )
    return random(model, seed)


def our_vit(seed=1, num_classes=7, **options):
    return random(build_model("vit", **{**TINY, "num_classes": num_classes, **options}), seed)


def images(n=3, side=32, chans=3):
    return torch.randn(n, chans, side, side, generator=torch.Generator().manual_seed(5))


def same(one, other, given=None):
    """Whether two models give equal logits."""
    given = images() if given is None else given
    with torch.no_grad():
        torch.testing.assert_close(one.eval()(given), other.eval()(given), atol=1e-5, rtol=1e-5)


def google(model, heads=2, newer=False, stacked=False, root=""):
    """A timm ViT's weights as arrays in the layout of Google's .npz files.

    The layout is the one that timm.models.vision_transformer._load_weights documents by reading it: the original
    files of google-research/vision_transformer, and big_vision's (`newer`, with its blocks `stacked` or not).
    """
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    width = model.embed_dim
    position = "pos_embedding" if newer else "Transformer/posembed_input/pos_embedding"
    arrays = {
        "cls": state["cls_token"],
        position: state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    attention, mlp, norm = (0, 0, 1) if newer else (1, 3, 2)
    blocks = []
    for i in range(len(model.blocks)):
        own = {name.removeprefix(f"blocks.{i}."): a for name, a in state.items() if name.startswith(f"blocks.{i}.")}
        block = {}
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", f"LayerNorm_{norm}")):
            block |= {f"{theirs}/scale": own[f"{ours}.weight"], f"{theirs}/bias": own[f"{ours}.bias"]}
        parts = zip(
            ("query", "key", "value"),
            own["attn.qkv.weight"].reshape(3, width, width),
            own["attn.qkv.bias"].reshape(3, width),
            strict=True,
        )
        multi = f"MultiHeadDotProductAttention_{attention}"
        for name, weight, bias in parts:
            block[f"{multi}/{name}/kernel"] = weight.T.reshape(width, heads, -1)
            block[f"{multi}/{name}/bias"] = bias.reshape(heads, -1)
        block[f"{multi}/out/kernel"] = own["attn.proj.weight"].T.reshape(heads, -1, width)
        block[f"{multi}/out/bias"] = own["attn.proj.bias"]
        for j in (0, 1):
            block[f"MlpBlock_{mlp}/Dense_{j}/kernel"] = own[f"mlp.fc{j + 1}.weight"].T
            block[f"MlpBlock_{mlp}/Dense_{j}/bias"] = own[f"mlp.fc{j + 1}.bias"]
        blocks.append(block)
    if stacked:
        arrays |= {f"Transformer/encoderblock/{name}": np.stack([b[name] for b in blocks]) for name in blocks[0]}
    else:
        arrays |= {f"Transformer/encoderblock_{i}/{name}": a for i, b in enumerate(blocks) for name, a in b.items()}
    return {f"{root}{name}": array for name, array in arrays.items()}
