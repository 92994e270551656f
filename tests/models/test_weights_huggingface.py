"""Files that transformers writes, loaded into timm's models and ours: the same logits."""

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models import build_model
from models.weights import load_weights

transformers = pytest.importorskip("transformers", minversion="5.24")

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
OURS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def saved(name, folder, **options):
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, CONFIGS[name])(**{**SMALL, **options})).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model, str(folder / "model.safetensors")


CONFIGS = {
    "ViTForImageClassification": "ViTConfig",
    "DeiTForImageClassificationWithTeacher": "DeiTConfig",
    "Dinov2Model": "Dinov2Config",
    "Dinov2WithRegistersModel": "Dinov2WithRegistersConfig",
}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ours", "timm", "torchvision"])
def test_vit(kind, tmp_path):
    theirs, file = saved("ViTForImageClassification", tmp_path)
    model = {
        "ours": lambda: build_model("vit", **OURS),
        "timm": lambda: VisionTransformer(**OURS),
        "torchvision": lambda: torchvision_like(),
    }[kind]()
    report = load_weights(model, file)
    assert not report.missing
    torch.testing.assert_close(model.eval()(IMAGES), theirs(IMAGES).logits, atol=1e-4, rtol=1e-4)


def torchvision_like():
    from torchvision.models.vision_transformer import VisionTransformer as Torchvision

    model = Torchvision(32, 8, 2, 4, 32, 128, num_classes=5)
    model.head_names = ("heads.head",)
    return model


@torch.no_grad()
def test_distilled_deit(tmp_path):
    theirs, file = saved("DeiTForImageClassificationWithTeacher", tmp_path)
    model = VisionTransformerDistilled(**OURS).eval()
    load_weights(model, file)
    torch.testing.assert_close(model(IMAGES), theirs(IMAGES).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2(registers, tmp_path):
    name, options = (
        ("Dinov2WithRegistersModel", {"num_register_tokens": registers}) if registers else ("Dinov2Model", {})
    )
    theirs, file = saved(name, tmp_path, **options)
    model = VisionTransformer(
        **OURS, init_values=1e-5, reg_tokens=registers, no_embed_class=bool(registers), global_pool="token"
    ).eval()
    load_weights(model, file)
    torch.testing.assert_close(model.forward_features(IMAGES), theirs(IMAGES).last_hidden_state, atol=1e-4, rtol=1e-4)
