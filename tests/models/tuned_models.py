"""Small models of every kind, and a few steps of training, for the tests of fine-tuning."""

import torch
from torch.nn import functional as F

from engine.train.loop.optim import build_optimizer
from models import build_model
from models.merging import wrap
from models.settings import check
from models.settings.finetune import FinetuneSettings
from tests.models.merging.wrapped_models import built

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
RESNET = {"img_size": 32, "num_classes": 5, "options": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}}
RESNEXT = {**RESNET, "options": {**RESNET["options"], "cardinality": 2, "base_width": 64}}
VIT = {"img_size": 32, "num_classes": 5, "options": SMALL}
MODELS = {
    "vit": lambda **o: build_model("vit", **TINY, **o),
    "hybrid": lambda **o: build_model("hybrid", **TINY, **o),
    "conformer": lambda **o: build_model("conformer", **TINY, base_channel=8, stem_stride=1, **o),
    "resnet": lambda **o: build_model("timm:resnet18", **{**RESNET, **o}),
    "resnext": lambda **o: build_model("timm:resnext50_32x4d", **{**RESNEXT, **o}),
    "timm": lambda **o: build_model("timm:vit_tiny_patch16_224", **{**VIT, **o}),
    "distilled": lambda **o: build_model("timm:deit_tiny_distilled_patch16_224", **{**VIT, **o}),
    "torchvision": lambda **o: zoo_like(built("torchvision"), ("heads.head",), **o),
    "beit": lambda **o: zoo_like(built("beit"), ("head",), **o),
    "eva": lambda **o: zoo_like(built("eva02"), ("head",), **o),
}


def zoo_like(model, heads, merge=None):
    """A model that is too small to have a name in its library."""
    model.img_size, model.in_chans, model.num_classes, model.head_names = 32, 3, 5, heads
    return model if merge is None else wrap(model, **merge)


def model_of(name, **options):
    """A model without a zero anywhere: heads that start at zero would hide mistakes."""
    torch.manual_seed(0)
    model = MODELS[name](**options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def settings(mode, **options):
    return check(FinetuneSettings, {"mode": mode, **options}, where="finetune")


def gradual(*groups):
    return settings("gradual", groups=[dict(zip(("parts", "epoch", "lr"), group, strict=True)) for group in groups])


def optimizer_of(model, tuning, lr=1e-2):
    return build_optimizer(model, "adamw", lr, 0.05, 0.9, (0.9, 0.999), tuning.scales)


def steps(model, optimizer, count=2):
    x, y = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 5
    for _ in range(count):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return x


def moved(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def copied(model):
    return {name: value.clone() for name, value in model.state_dict().items()}
