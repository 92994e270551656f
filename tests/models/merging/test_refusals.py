"""What merging is not put into: each is refused in one line, with the reason, and stays as it was."""

import re

import pytest
import timm.models
import torch
from timm.models import vision_transformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import swin_transformer as torchvision_swin

from models import build_model
from models.merging import unwrap, wrap
from models.merging.wrapping import blocks_of, schedule_of, trace
from models.settings import UserError
from tests.models.merging.wrapped_models import TINY, built, container, gradients, images
from tests.paths import ROOT


def with_blocks(block_fn, **options):
    return VisionTransformer(**TINY, block_fn=block_fn, **options)


class OwnFlow(VisionTransformer):
    def forward_features(self, x):
        return super().forward_features(x)[:, :, :]


class OwnBlock(vision_transformer.Block):
    pass


class Twice(nn.Sequential):
    """A container that does more than hold its blocks, and is built in a way of its own."""

    def __init__(self, blocks):
        super().__init__(*blocks)

    def forward(self, x):
        return super().forward(x) * 2


def changed(change):
    model = built()
    change(model)
    return model


def replace_forward(model):
    model.blocks[1].attn.forward = lambda x, **given: x


def replace_container(model):
    model.blocks = Twice(list(model.blocks))


def replace_container_s_forward(model):
    model.blocks.forward = lambda x: x


def hook_wrapped_blocks(model):
    wrap(model, r=1).blocks.register_forward_pre_hook(lambda *_: None)


def add_part(model):
    model.blocks[1].attn.relative = nn.Linear(1, 1)


REFUSED = {
    "ConvNeXt convolves": lambda: timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)),
    "VisionTransformer merges by itself": lambda: build_model("vit", **TINY),
    "Linear is not a model that wrap supports; "
    "wrap takes timm's VisionTransformer, timm's Beit, timm's Eva, torchvision's VisionTransformer": lambda: nn.Linear(
        1, 1
    ),
    "OptimizedModule holds the model already": lambda: torch.compile(built()),
    "blocks.0 is a ParallelScalingBlock, which computes attention and MLP side by side": lambda: with_blocks(
        vision_transformer.ParallelScalingBlock
    ),
    "blocks.0 is a ParallelThingsBlock, which has several attentions": lambda: with_blocks(
        vision_transformer.ParallelThingsBlock
    ),
    "blocks.0 is a OwnBlock, which wrap does not support": lambda: with_blocks(OwnBlock),
    "OwnFlow has a forward_features of its own": lambda: OwnFlow(**TINY),
    "blocks.1.attn has hooks or a forward of its own": lambda: changed(replace_forward),
    "blocks.2 has hooks": lambda: changed(lambda m: m.blocks[2].register_forward_hook(lambda *_: None)),
    "blocks is a Twice, which wrap does not support; it replaces a Sequential": lambda: changed(replace_container),
    "blocks has hooks or a forward of its own": lambda: changed(replace_container_s_forward),
    "blocks has hooks": lambda: changed(lambda m: m.blocks.register_forward_hook(lambda *_: None)),
    "blocks has hooks or a forward of its own, which": lambda: changed(hook_wrapped_blocks),
    "blocks.1.attn has relative, which wrap does not support": lambda: changed(add_part),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_served_is_refused_with_the_reason(line):
    model = REFUSED[line]()
    with pytest.raises(UserError) as error:
        wrap(model, r=2)
    assert line in str(error.value) and "\n" not in str(error.value)


def swin(library, cls="SwinTransformer"):
    sizes = {"embed_dim": 8, "depths": [2], "num_heads": [1]}
    if library == "timm":
        return getattr(timm.models, cls)(img_size=32, patch_size=4, window_size=4, **sizes)
    if library == "torchvision":
        return torchvision_swin.SwinTransformer(patch_size=[4, 4], window_size=[4, 4], **sizes)
    transformers = pytest.importorskip("transformers")
    return transformers.SwinModel(transformers.SwinConfig(image_size=32, window_size=4, **sizes))


@pytest.mark.parametrize(
    "model", [("timm",), ("timm", "SwinTransformerV2"), ("torchvision",), ("transformers",)], ids="-".join
)
def test_windows_are_refused_and_the_measurement_is_named(model):
    with pytest.raises(UserError) as error:
        wrap(swin(*model), r=2)
    said = str(error.value)
    assert " attends inside windows, where merging does not pay: docs/results/swin; wrap takes" in said
    assert "\n" not in said and (ROOT / "docs" / "results" / "swin" / "README.md").is_file()


def test_lora_in_place_of_torchvision_s_attention_is_refused():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["self_attention"])
    adapted = peft.get_peft_model(wrap(built("torchvision"), r=4), config)
    with pytest.raises(UserError, match="block encoder_layer_0.self_attention is a MultiheadAttention; wrap supports"):
        adapted(images())


@pytest.mark.parametrize(
    ("name", "target", "path", "others"),
    [
        ("beit", "qkv", "blocks.0.attn.qkv", ["proj", "fc1", "fc2"]),
        ("torchvision", "out_proj", "encoder.layers.encoder_layer_0.self_attention.out_proj", ["mlp.0", "mlp.3"]),
    ],
)
def test_lora_where_weights_alone_are_used_is_refused_and_the_way_out_works(name, target, path, others):
    peft = pytest.importorskip("peft")
    before = {"init_lora_weights": False, "r": 2}
    refused = re.escape(
        f" is a peft.tuners.lora.layer.Linear, which has no effect there: attention uses its weight "
        f"alone; LoRA can go into {', '.join(others)}"
    )
    with pytest.raises(UserError, match=re.escape(path) + refused):
        wrap(peft.get_peft_model(built(name), peft.LoraConfig(target_modules=[target], **before)), r=4)
    with pytest.raises(UserError, match=target + refused):
        peft.get_peft_model(wrap(built(name), r=4), peft.LoraConfig(target_modules=[target], **before))(images())
    adapted = wrap(peft.get_peft_model(built(name), peft.LoraConfig(target_modules=others, **before)), r=4)
    trained = gradients(adapted)
    assert {key for key, p in adapted.named_parameters() if p.requires_grad} == trained.keys() and trained


@pytest.mark.parametrize("separate", [False, True])
def test_lora_in_beit_s_qkv_takes_part_where_it_is_called(separate):
    """Without biases, or where they are added after it."""
    peft = pytest.importorskip("peft")
    model = built("beit", qkv_bias=separate)
    for block in model.blocks:
        block.attn.qkv_bias_separate = separate
    config = peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
    adapted = wrap(peft.get_peft_model(model, config), r=4).eval()
    out = adapted(images())
    with adapted.disable_adapter():
        assert not torch.allclose(adapted(images()), out, atol=1e-3)


@pytest.mark.skipif(not hasattr(vision_transformer, "DiffAttention"), reason="this timm has no differential attention")
def test_differential_attention_is_refused():
    with pytest.raises(UserError, match="blocks.0.attn is a DiffAttention; wrap supports .*Attention"):
        wrap(VisionTransformer(**TINY, attn_layer="diff"), r=2)


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("average", {"method": "topk", "r": 2}, "this VisionTransformer has no class token"),
        ("map", {"method": "topk", "r": 2}, "has no class token"),  # its first token is a register
        ("deit", {"r": [1, 2]}, "merge.r has 2 entries; the model has 3 blocks"),
        ("deit", {"target_gmacs": 1.0}, "merge.target_gmacs = 1.0: out of reach; with tome an image costs"),
        ("deit", {"target_ratio": 20.0}, "GMACs): out of reach; with tome an image costs"),
        ("deit", {"method": "tomme"}, "merge.method = 'tomme': did you mean tome"),
        ("deit", {"keth": 3}, "merge.keth: unknown key; did you mean kth"),
        ("deit", {"keep": {"rate": 0.5, "blocks": [4]}}, "merge.keep.blocks = [4]: no block 4; use 1 to 3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, options, line):
    model = built(name)
    before = container(model)
    with pytest.raises(UserError) as error:
        wrap(model, **options)
    assert line in str(error.value) and container(model) is before


@pytest.mark.parametrize("method", ["pool", "grid"])
def test_patch_dropout_leaves_no_grid(method):
    model = built(patch_drop_rate=0.25)
    line = (
        f"merge.method = '{method}': it keeps a grid, and patch_drop_rate = 0.25 leaves no grid in training; build the"
    )
    with pytest.raises(UserError, match=line):
        wrap(model, method=method, r=12)
    assert wrap(model, r=2).train()(images()).isfinite().all()


def test_a_grid_that_nobody_knows_is_refused():
    with pytest.raises(UserError, match="merge.method = 'pool': it keeps a grid, and this VisionTransformer takes"):
        wrap(built(dynamic_img_size=True), method="pool", r=12)


def test_only_wrapped_models_can_be_unwrapped_and_traced():
    for function in (unwrap, schedule_of, blocks_of, lambda model: trace(model, images())):
        with pytest.raises(UserError, match="this VisionTransformer is not wrapped"):
            function(built())
        with pytest.raises(UserError, match="NoneType is not a model that wrap supports"):
            function(None)


@pytest.mark.parametrize("r", [0, 2])
def test_a_block_that_is_sharded_by_itself_is_refused(r):
    from torch.distributed.fsdp import FSDPModule

    model = wrap(built(), r=r)
    block = model.blocks[1]
    block.__class__ = type("FSDPBlock", (FSDPModule, type(block)), {})  # as fully_shard(block) does
    with pytest.raises(UserError, match="block 1 is a FSDPBlock, which is sharded by itself: .* the whole model"):
        model(images())


def test_hooks_of_the_container_do_not_vanish_when_it_is_unwrapped():
    model = wrap(built(), r=2)
    hook = model.blocks.register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match="blocks has hooks"):
        unwrap(model)
    hook.remove()
    assert type(unwrap(model).blocks) is nn.Sequential


@pytest.mark.parametrize("plan", [[-3] * 3, [1.5] * 3, [0.0] * 3, [None] * 3, [True] * 3, ["1"] * 3, "111", 5, None])
def test_a_plan_that_is_none_is_refused_when_it_is_set(plan):
    model = wrap(built(), r=2)
    with pytest.raises(UserError) as error:
        blocks_of(model).plan = plan
    assert str(error.value).startswith(
        f"plan = {plan!r}: give a list with, for each block, the number of patches to remove"
    )
    assert schedule_of(model) == [2, 2, 2]
    blocks_of(model).plan = (3, 0.5, 1.0)
    assert schedule_of(model) == [3, 6, 0]


def test_a_model_without_an_image_size_merges_images_of_any():
    model = VisionTransformer(**{**TINY, "img_size": None}, pos_embed="none", no_embed_class=True).eval()
    wrap(model, r=4)
    for size in (32, 48):
        assert trace(model, images(size=size))[1].size.shape[1] == 1 + (size // 8) ** 2 - 12
    with pytest.raises(UserError, match="img_size = None: the number of patches depends on the image"):
        schedule_of(model)
    with pytest.raises(UserError, match="this VisionTransformer takes images of any size"):
        wrap(model, method="grid", r=4)
