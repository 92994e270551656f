"""The settings of a model without a run."""

import pytest

from engine.settings.layers import load_settings
from engine.settings.models import load_models
from models.settings import UserError

TIMM = "timm:deit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("name", "overrides", "methods", "found"),
    [
        (TIMM, [], None, [None]),
        (TIMM, ["merge.r=8"], None, ["tome"]),
        (TIMM, ["merge.method=topk", "merge.r=8"], [], ["topk"]),
        (TIMM, ["merge.method=topk", "merge.r=8"], ["tome", "dpc_knn"], ["tome", "dpc_knn"]),
        ("digits/vit", [], None, [None]),
        ("digits/vit", ["merge.r=1"], ["tome"], ["tome"]),
        ("lenet5", ["model.img_size=20"], None, [None]),
        ("torchvision:squeezenet1_1", [], None, [None]),
    ],
)
def test_models(name, overrides, methods, found):
    settings = load_models(name, overrides, methods)
    assert list(settings) == found
    for method, one in settings.items():
        if method is not None:
            assert one.merge.method == method and one.merge.r in (1, 8)


def test_a_file_gives_its_own_model():
    settings = load_settings("digits/hybrid", ["merge.r=2"]).model
    assert load_models("digits/hybrid", ["merge.r=2"], None) == {"tome": settings}


def test_a_named_model_has_its_librarys_image_size():
    assert load_models("timm:vit_base_patch16_384", ["model.num_classes=7"], None)[None].img_size == 384


@pytest.mark.parametrize(
    ("name", "overrides", "methods", "line"),
    [
        ("lenet5", [], ["tome"], "lenet5: has no tokens to merge; leave --methods and merge. out"),
        ("lenet5", ["merge.r=2"], None, "lenet5: has no tokens to merge"),
        ("lenet5", ["train.lr=1"], None, "train: has no effect on a model"),
        ("lenet5", ["model.depht=1"], None, "model.depht: unknown key"),
        (TIMM, ["merge.r=2"], ["tomme"], "model.merge.method = 'tomme': did you mean tome"),
        ("timm:deit_tinny", [], None, "deit_tinny"),
        ("squeezenet", [], None, "zoo/squeezenet"),
    ],
)
def test_mistakes(name, overrides, methods, line):
    with pytest.raises(UserError, match=line):
        load_models(name, overrides, methods)
