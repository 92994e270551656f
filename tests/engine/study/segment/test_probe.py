"""Maps, the linear probe and its targets, beside literal computations and scikit-learn's regression."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from engine.cost.macs import measure
from engine.study.segment.maps import Maps
from engine.study.segment.probe import Segmenter, drawn_patches, fit_linear, linear_head, patch_shares
from models.merging import wrap
from models.settings import UserError


def vit():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=64).eval()
    model.img_size, model.in_chans = 64, 3
    return model


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_maps_are_those_of_timm_side_by_side():
    model = vit()
    found = Maps(model, [2, 6])(images())
    theirs = model.forward_intermediates(images(), indices=[1, 5], norm=True, intermediates_only=True)
    assert torch.equal(found, torch.cat(theirs, dim=1)) and found.shape == (2, 128, 4, 4)
    assert torch.equal(Maps(model, None)(images()), theirs[1])
    last = model.forward_features(images())[:, 1:].mT.unflatten(2, (4, 4))
    assert torch.equal(Maps(model, None)(images()), last)
    wrap(model, "tome", r=[0, 0, 3, 3, 0, 0])
    merged = Maps(model, [2, 6])(images())
    assert torch.equal(merged[:, :64], found[:, :64]) and len(merged[0, 64:].flatten(1).unique(dim=1).T) == 10


@torch.no_grad()
def test_maps_are_enlarged_or_averaged_to_a_grid():
    model = vit()
    plain, larger, smaller = (Maps(model, [2, 6], grid)(images()) for grid in (None, 7, 2))
    assert torch.equal(larger, F.interpolate(plain, (7, 7), mode="bilinear"))
    assert torch.equal(smaller, F.avg_pool2d(plain, 2)) and torch.equal(Maps(model, [2, 6], 4)(images()), plain)


def test_blocks_behind_the_last_map_are_not_run():
    model, ran = vit(), []
    for number, block in enumerate(model.blocks, 1):
        block.register_forward_hook(lambda *given, number=number: ran.append(number))
    Maps(model, [2, 4])(images())
    assert ran == [1, 2, 3, 4]
    head = linear_head(torch.zeros(3, 64), torch.zeros(3))
    costs = [measure(Segmenter(Maps(vit(), [last]), head, 64)).macs for last in (2, 6)]
    whole = measure(vit())
    assert costs[1] - costs[0] == sum(whole.by_module[f"blocks.{number}"] for number in range(2, 6))


def of_size(model, size):
    model.img_size, model.in_chans = size, 3
    return model.eval()


@torch.no_grad()
def test_maps_of_cnns_are_on_the_grid_of_the_last():
    shown = images()
    net = of_size(torchvision.models.squeezenet1_1(), 64)
    fourth, seventh = net.features[:4](shown), net.features[:7](shown)
    found = Maps(net, [4, 7])(shown)
    assert torch.equal(found[:, 128:], seventh) and found.shape[2:] == (7, 7) and fourth.shape[2:] == (15, 15)
    assert torch.equal(found[:, :128], F.adaptive_avg_pool2d(fourth, 7))
    assert torch.equal(Maps(net, [1, 4])(shown)[:, :64], F.adaptive_avg_pool2d(net.features[0](shown), 15))  # no ReLU
    assert measure(Maps(net, [4])).macs < measure(Maps(net, [7])).macs
    resnet = of_size(timm.create_model("test_resnet"), 64)
    coarse, fine = (resnet.forward_intermediates(shown, indices=[n], intermediates_only=True)[0] for n in (4, 2))
    found = Maps(resnet, [3, 5])(shown)
    assert torch.equal(found[:, -coarse.shape[1] :], coarse) and fine.shape[-1] > coarse.shape[-1]
    assert torch.equal(found[:, : fine.shape[1]], F.adaptive_avg_pool2d(fine, coarse.shape[2:]))


@pytest.mark.parametrize(
    "model, blocks, message",
    [
        (lambda: of_size(torchvision.models.squeezenet1_1(), 64), [14], "probe.blocks = [14]: the model has 13 blocks"),
        (torchvision.models.swin_t, [1], "SwinTransformer gives no maps of its blocks"),
        (torchvision.models.resnet18, [1], "ResNet gives no maps of its blocks"),
        (vit, [7], "probe.blocks = [7]: the model has 6 blocks"),
        (lambda: nn.Linear(1, 1), None, "Linear gives no maps of its blocks"),
    ],
)
def test_models_without_such_maps(model, blocks, message):
    with pytest.raises(UserError) as raised:
        Maps(model(), blocks)
    assert message in str(raised.value)


@torch.no_grad()
def test_logits_of_pixels_are_bilinear_between_those_of_patches():
    weight, bias = torch.randn(3, 64), torch.randn(3)
    maps = Maps(vit(), None)
    logits = Segmenter(maps, linear_head(weight, bias), 64)(images())
    assert logits.shape == (2, 3, 64, 64)
    patches = torch.einsum("bdhw,kd->bkhw", maps(images()), weight) + bias[:, None, None]
    torch.testing.assert_close(logits[:, :, 0, 0], patches[:, :, 0, 0])  # a corner has one neighbour
    # Pixel 15 of 16 to a patch lies 15.5 / 16 from the first patch's edge: 7.5 / 16 of the way to the next centre.
    between = patches[:, :, 0, 0] + 7.5 / 16 * (patches[:, :, 0, 1] - patches[:, :, 0, 0])
    torch.testing.assert_close(logits[:, :, 0, 15], between, atol=1e-5, rtol=1e-5)


def test_shares_are_counted_pixels():
    masks = torch.randint(0, 3, (2, 8, 12), generator=torch.Generator().manual_seed(0)).byte()
    masks[1, :4, :4] = 255
    shares = patch_shares(masks, 3, 2, 3)
    for image, row, column in np.ndindex(2, 2, 3):
        inside = masks[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        expected = [(inside == number).sum().item() / 16 for number in range(3)]
        assert shares[image, row, column].tolist() == pytest.approx(expected)
    assert shares[1, 0, 0].tolist() == [0, 0, 0]
    uneven = patch_shares(masks, 3, 3, 5)  # 8 x 12 pixels in 3 x 5 patches share the pixels between two
    assert uneven.shape == (2, 3, 5, 3) and torch.allclose(uneven[0].sum(-1), torch.ones(3, 5))
    assert uneven[0, 0, 0, 1].item() == pytest.approx((masks[0, :3, :3] == 1).float().mean().item())


@pytest.fixture
def clusters():
    """Features of three overlapping classes, some of large scale, and the classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (300,), generator=generator)
    features = torch.randn(300, 4, generator=generator) + torch.eye(3, 4)[labels] * 1.5
    return features * torch.tensor([1.0, 100.0, 0.01, 1.0]) + 5, labels


def test_the_fit_is_scikit_learn_s(clusters):
    features, labels = clusters
    weight, bias = fit_linear(features, torch.eye(3)[labels], l2=0.01, steps=500)
    mean, std = features.mean(0), features.std(0, correction=0)
    theirs = LogisticRegression(C=1 / (0.01 * len(labels)), tol=1e-8, max_iter=1000)
    theirs.fit(((features - mean) / std).double().numpy(), labels.numpy())
    expected = theirs.predict_proba(((features - mean) / std).double().numpy())
    found = (features @ weight.T + bias).softmax(1).numpy()
    assert np.abs(found - expected).max() < 2e-3 and expected.max() < 0.999


def test_shares_are_patches_that_count_in_part(clusters):
    """A patch that is half of one class and half of another is half a patch of each; one without a class is none."""
    features, labels = clusters
    ones, others = torch.eye(3)[labels], torch.eye(3)[labels.roll(1)]
    mixed = fit_linear(features, (ones + others) / 2, 0.01, 500)
    twice = fit_linear(features.repeat(2, 1), torch.cat([ones, others]), 0.01, 500)
    half = fit_linear(features, (ones + others) / 4, 0.01, 500)  # of each, half the pixels are ignored
    unlabelled = fit_linear(torch.cat([features, features + 9]), torch.cat([(ones + others) / 2, 0 * ones]), 0.01, 500)
    for weight, bias in (twice, half, unlabelled):
        assert ((features @ (weight - mixed[0]).T + bias - mixed[1]).abs() < 0.01).all()


def test_patches_are_drawn_by_image():
    drawn = drawn_patches(torch.arange(5), 20, 6)
    assert drawn.shape == (5, 6) and all(len(set(row)) == 6 and row == sorted(row) for row in drawn.tolist())
    assert torch.equal(drawn_patches(torch.tensor([3, 4]), 20, 6), drawn[3:]) and len(drawn.unique(dim=0)) == 5
    assert set(drawn_patches(torch.arange(50), 20, 6).flatten().tolist()) == set(range(20))
    assert torch.equal(drawn_patches(torch.arange(2), 4, 6), torch.arange(4).expand(2, -1))
