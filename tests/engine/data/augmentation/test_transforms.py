import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from engine.data.augmentation.transforms import TRANSFORMS, compose, keys, transformed
from engine.data.settings import AugmentSettings
from models.settings import UserError, check

NEEDED = {"RandomRotation": {"degrees": 20.0}}


def settings(*entries: dict | str) -> AugmentSettings:
    named = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
    return check(AugmentSettings, {"transforms": named}, "augment")


def refused(*entries: dict | str) -> str:
    with pytest.raises(UserError) as caught:
        settings(*entries)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [name for name, (_, make) in TRANSFORMS.items() if make])
def test_every_transform_gives_the_models_size_from_any_size(name):
    chosen = settings({"name": name, **NEEDED.get(name, {})}, "RandomResizedCrop").transforms
    image = torch.randint(0, 256, (3, 20, 31), dtype=torch.uint8)
    for shape in ((3, 16, 16), (1, 16, 16)):
        made = transformed(image[: shape[0]], compose(chosen, shape, whole=True), 0)
        assert made.dtype == torch.uint8 and made.shape == shape


def test_transforms_are_torchvisions_in_the_order_given():
    entries = [{"name": "Resize", "size": 20}, {"name": "CenterCrop", "size": 16}]
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    expected = v2.Compose([v2.Resize(20, antialias=True), v2.CenterCrop(16)])(image)
    assert compose(settings(*entries).transforms, (3, 16, 16), whole=True)(image).equal(expected)
    turned = compose(settings(*entries[::-1], "Resize").transforms, (3, 16, 16), whole=True)(image)
    assert not turned.equal(expected)


def test_draws_are_a_function_of_seed_epoch_and_index_alone():
    composed = compose(settings("RandomResizedCrop", "RandAugment", "ColorJitter").transforms, (3, 16, 16), whole=True)
    image = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8)
    (key,) = keys(1, 2, np.array([3]))
    first = transformed(image, composed, key)
    torch.rand(7)
    assert transformed(image, composed, key).equal(first)
    assert keys(1, 2, np.array([5, 3]))[1] == key  # whatever batch it is in
    for seed, epoch, index in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not transformed(image, composed, *keys(seed, epoch, np.array([index]))).equal(first)
    state = torch.random.get_rng_state()
    transformed(image, composed, 0)
    assert torch.random.get_rng_state().equal(state)  # others' draws are not disturbed


def test_chances_are_those_that_were_asked_for():
    composed = compose(settings({"name": "RandomHorizontalFlip", "p": 0.3}).transforms, (3, 4, 4), whole=False)
    image = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
    flipped = sum(not transformed(image, composed, i).equal(image) for i in range(2000))
    assert abs(flipped / 2000 - 0.3) < 0.04  # four standard errors


def test_what_does_not_end_in_the_models_size_is_refused():
    with pytest.raises(
        UserError,
        match=r"augment.transforms: they turn an image of 264 x 448 pixels into one of 224 x 380, the "
        "model takes 224 x 224; end with RandomResizedCrop",
    ):
        compose(settings("Resize").transforms, (3, 224, 224), whole=True)
    compose(settings("Resize").transforms, (3, 224, 224), whole=False)  # of squares it makes squares
    with pytest.raises(UserError, match="into one of 200 x 200, the model takes 224 x 224"):
        compose(settings({"name": "CenterCrop", "size": 200}).transforms, (3, 224, 224), whole=True)


@pytest.mark.parametrize(
    "entries, said",
    [
        (["RandomFlip"], ["augment.transforms", "RandomFlip", "RandomHorizontalFlip"]),
        ([{"name": "RandomErasing", "p": 1.5}], ["p", "1.5", "1"]),
        ([{"name": "RandomErasing", "q": 0.5}], ["q", "unknown key"]),
        ([{"name": "RandomResizedCrop", "scale": [0.9, 0.2]}], ["scale", "the first must not be more"]),
        ([{"name": "RandomRotation"}], ["degrees"]),
        ([{"name": "RandAugment", "magnitude": 31}], ["magnitude", "31", "30"]),
        (["MixUp", "RandomHorizontalFlip"], ["MixUp", "at the end"]),
        (["MixUp", "MixUp"], ["MixUp", "once"]),
    ],
)
def test_wrong_names_and_arguments(entries, said):
    line = refused(*entries)
    assert all(word in line for word in said), line


def test_an_empty_list_and_two_ways_at_once_are_refused():
    with pytest.raises(UserError, match="transforms"):
        check(AugmentSettings, {"transforms": []}, "augment")
    with pytest.raises(UserError, match="not beside flip, erase"):
        check(AugmentSettings, {"transforms": [{"name": "RandAugment"}], "flip": True, "erase": 0.5}, "augment")


def test_mixing_is_read_from_the_list_or_from_its_keys():
    assert settings("RandAugment", {"name": "MixUp", "alpha": 0.2}, {"name": "CutMix"}).mixing() == (0.2, 1.0)
    assert settings("RandAugment").mixing() == (0, 0)
    assert check(AugmentSettings, {"mixup": 0.3}, "augment").mixing() == (0.3, 0)


@pytest.mark.parametrize("name", ["RandAugment", "TrivialAugmentWide", "ColorJitter"])
def test_colours_are_of_one_channel_or_three(name):
    chosen = check(AugmentSettings, {"transforms": [{"name": name}]}, "augment").transforms
    compose(chosen, (1, 8, 8), whole=False)
    with pytest.raises(UserError, match=f"{name} needs images with 1 or 3 channels, these have 4; remove it"):
        compose(chosen, (4, 8, 8), whole=False)
