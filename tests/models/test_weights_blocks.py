"""A file that lacks a layer of a block, or what is outside of all blocks, is refused; one with fewer blocks is not."""

import pytest
import timm
import torchvision

from models import UserError, build_model
from models.weights import load_weights
from tests.marks import mostly_slow
from tests.models.weight_files import TINY, our_vit, timm_vit, torchvision_vit


def without(model, *prefixes):
    state = dict(model.state_dict())
    kept = {name: value for name, value in state.items() if not name.startswith(prefixes)}
    assert len(kept) < len(state)
    return kept


MODELS = {
    "torchvision ViT": torchvision_vit,
    "timm ViT": timm_vit,
    "our ViT": our_vit,
    "timm ConvNeXt": lambda: timm.create_model("test_convnext", num_classes=3),
    "torchvision ConvNeXt": lambda: torchvision.models.convnext_tiny(num_classes=3),
    "VGG": lambda: torchvision.models.vgg.VGG(torchvision.models.vgg11().features, num_classes=3),
    "MobileNetV2": lambda: torchvision.models.mobilenet_v2(num_classes=3),
    "ResNet": lambda: torchvision.models.resnet18(num_classes=3),
}
LACKING = {  # the model, what the file lacks: a whole layer of a block, a stem, or all that lies outside of the blocks
    "torchvision ViT, a layer": ("torchvision ViT", "encoder.layers.encoder_layer_1.mlp.0."),
    "timm ViT, a layer": ("timm ViT", "blocks.1.mlp.fc1."),
    "torchvision ConvNeXt, a layer": ("torchvision ConvNeXt", "features.5.3.block.0."),
    "MobileNetV2, a layer": ("MobileNetV2", "features.5.conv.0."),
    "VGG, a layer": ("VGG", "features.8."),
    "torchvision ConvNeXt, the stem": ("torchvision ConvNeXt", "features.0."),
    "timm ConvNeXt, the stem": ("timm ConvNeXt", "stem."),
    "MobileNetV2, the stem": ("MobileNetV2", "features.0."),
    "ResNet, the stem and the head": ("ResNet", "conv1.", "bn1.", "fc."),
    "ResNet, a block that halves the map": ("ResNet", "layer2.0."),
    "timm ViT, the trunk": ("timm ViT", "patch_embed.", "cls_token", "pos_embed", "norm.", "head."),
    "our ViT, the trunk": ("our ViT", "patch_embed.", "cls_token", "pos_embed", "norm.", "head."),
}


@pytest.mark.parametrize("case", mostly_slow(LACKING, [case for case in LACKING if not case.startswith("VGG")]))
def test_a_file_without_a_part_that_no_network_lacks(case):
    name, *prefixes = LACKING[case]
    model = MODELS[name]()
    lost = next(key for key in model.state_dict() if key.startswith(tuple(prefixes)))
    with pytest.raises(UserError, match="missing in the file") as caught:
        load_weights(model, "FILE", without(model, *prefixes))
    assert lost in str(caught.value)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("torchvision ViT", "encoder.layers.encoder_layer_1."),
        ("timm ViT", "blocks.1."),
        ("torchvision ConvNeXt", "features.5.8."),
        ("MobileNetV2", "features.6."),
        ("ResNet", "layer1.1."),
    ],
)
def test_a_file_with_a_block_less(name, block):
    model = MODELS[name]()
    report = load_weights(model, "FILE", without(model, block))
    assert report.missing and all(lost.startswith(block) for lost in report.missing)


@pytest.mark.parametrize("method", ["tome", "none"])
def test_blocks_that_merge_are_equal_blocks(method):
    model = build_model("vit", **{**TINY, "depth": 3}, num_classes=7, merge={"method": method, "r": 0})
    report = load_weights(model, "FILE", without(model, "blocks.2."))
    assert len(report.missing) == 12


def test_a_layer_of_a_conformers_or_hybrids_block():
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
    conformer = build_model("conformer", **sizes, depth=6, channel_ratio=1)
    hybrid = build_model("hybrid", **sizes, depth=2, cnn={"block": "convnext", "depth": 2}, stem="patch")
    for model, layer in (
        (conformer, "conv_trans_2.trans_block.mlp.fc1."),
        (hybrid, "vit.blocks.1.mlp.fc1."),
        (hybrid, "conv_head.stages.1.fc1."),
    ):
        with pytest.raises(UserError, match=f"missing in the file .*{layer}"):
            load_weights(model, "FILE", without(model, layer))
    assert len(load_weights(hybrid, "FILE", without(hybrid, "conv_head.stages.1.")).missing) == 9
