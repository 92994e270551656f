"""The CNN stage of a segmenter: what it computes, that it learns what patches alone do not show, and its seed."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from engine.measure.segmentation import mean_iou
from engine.study.segment import fitting, timing
from engine.study.segment.evaluate import evaluate_rows
from engine.study.segment.maps import Maps
from engine.study.segment.probe import fit_linear
from engine.study.segment.settings import StageSettings
from engine.study.segment.stage import CNNStage, fit_stage, fit_together
from engine.study.segment.subject import batches, load_subject
from engine.study.segment.timing import time_rows
from engine.study.zeroshot.each import Comparison, at_size
from models.cnn import ConvNeXtBlock, ResidualBlock
from models.settings import UserError

QUICK = StageSettings(dim=8, epochs=30, lr=1e-2, batch_size=8, dropout=0.0)


@pytest.fixture
def stripes():
    """Maps of noise at several scales in which every patch has the class of the patch to its left, and the classes."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 2, (64, 6, 6), generator=generator)
    maps = torch.randn(64, 3, 6, 6, generator=generator) * 0.1
    maps[:, 0] += classes
    scales = torch.tensor([100.0, 1.0, 0.01])[:, None, None]
    return maps * scales + 5, F.one_hot(classes.roll(1, dims=2), 2).float()


def right(logits, shares):
    return (logits.argmax(1) == shares.argmax(-1)).float().mean().item()


def test_a_stage_sees_the_neighbours_of_a_patch(stripes):
    maps, shares = stripes
    shares[:, :, 0] = 0  # the first column has no patch to its left: ignored
    stage = fit_stage(maps[:48], shares[:48], QUICK)
    assert not stage.training and right(stage(maps[48:])[..., 1:], shares[48:, :, 1:]) > 0.95
    weight, bias = fit_linear(maps[:48].movedim(1, -1).flatten(0, 2), shares[:48].flatten(0, 2), 1e-3, 100)
    linear = F.conv2d(maps[48:], weight[:, :, None, None], bias)
    assert right(linear[..., 1:], shares[48:, :, 1:]) < 0.65
    alone = fit_stage(maps[:48], shares[:48], QUICK.model_copy(update={"depth": 0}))
    assert right(alone(maps[48:])[..., 1:], shares[48:, :, 1:]) < 0.65


def test_a_stage_is_decided_by_its_seed_and_leaves_the_random_state(stripes):
    maps, shares = stripes
    short = QUICK.model_copy(update={"epochs": 2, "dropout": 0.3})
    before = torch.get_rng_state()
    first, second = fit_stage(maps, shares, short), fit_stage(maps, shares, short)
    assert torch.equal(torch.get_rng_state(), before)
    other = fit_stage(maps, shares, short.model_copy(update={"seed": 1}))
    assert torch.equal(first(maps), second(maps)) and not torch.equal(first(maps), other(maps))


def test_the_scale_of_features_is_a_part_of_the_weights(stripes):
    """Features of another scale and offset lead to the same logits."""
    maps, shares = stripes
    short = QUICK.model_copy(update={"epochs": 3})
    one, other = fit_stage(maps, shares, short), fit_stage(3 * maps - 2, shares, short)
    torch.testing.assert_close(one(maps), other(3 * maps - 2), atol=2e-2, rtol=1e-2)


class Channels(nn.Module):
    """Patches of 4 px whose features are the means of the image's channels, the first one weighted by far the most."""

    img_size, in_chans, feature_info = 24, 3, (None,)

    def __init__(self):
        super().__init__()
        self.weigh = nn.Parameter(torch.tensor([1.0, 0.01, 0.01]))
        self.norm, self.drop = nn.BatchNorm2d(1, affine=False), nn.Dropout(0.9)

    def forward_intermediates(self, images, **_):
        return [self.drop(self.norm(F.avg_pool2d(images * self.weigh[:, None, None], 4).sum(1, keepdim=True)))]


def together(settings, number=64):
    """Trains `Channels` and a stage on images whose second channel says the class; returns what is right, and both."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 2, (number, 6, 6), generator=generator)
    images = torch.randn(number, 3, 24, 24, generator=generator)
    images[:, 1] += 4 * classes.repeat_interleave(4, 1).repeat_interleave(4, 2)
    shares, maps = F.one_hot(classes, 2).float(), Maps(Channels().eval(), None)
    with torch.no_grad():
        found = maps(images)
    moments = found.mean((0, 2, 3)), found.std((0, 2, 3))
    trained, stage = fit_together(
        maps, lambda chosen: images[chosen], shares, moments, settings, torch.autocast("cpu", enabled=False)
    )
    with torch.no_grad():
        return right(stage(trained(images)), shares), maps.model, trained


def test_a_model_is_trained_with_its_stage_and_stays_in_evaluation_mode():
    frozen, *_ = together(QUICK.model_copy(update={"model_lr": 1e-9, "depth": 0}))
    learned, model, trained = together(QUICK.model_copy(update={"model_lr": 3e-2, "depth": 0}))
    assert frozen < 0.7 and learned > 0.95
    assert torch.equal(model.weigh, Channels().weigh) and trained.model.weigh[1].abs() > 5 * model.weigh[1]
    assert not trained.training and torch.equal(trained.model.norm.running_mean, torch.zeros(1))
    assert not any(parameter.requires_grad for parameter in trained.parameters())
    assert together(QUICK.model_copy(update={"model_lr": 3e-2, "depth": 0}))[0] == learned


def test_a_model_that_diverges_is_an_error():
    with pytest.raises(
        UserError, match="probe.cnn.lr = 0.01, probe.cnn.model_lr = 100.0: the training of the CNN stage diverged"
    ):
        together(QUICK.model_copy(update={"model_lr": 100.0, "lr": 1e-2, "weight_decay": 100.0, "epochs": 60}), 8)


TUNED = "probe.cnn={dim: 8, epochs: 20, batch_size: 4, lr: 1e-2, model_lr: 1e-3}"


def test_rows_are_trained_together_each_from_the_given_weights(load, tmp_path):
    given = ("methods=[tome]", "budgets=[{r: 2}]", "sizes=[]", "data.train=16", "data.test=5")
    _, frozen = evaluate_rows(load(*given, TUNED, "probe.cnn.model_lr=null"), tmp_path, lambda line: None)
    _, (own, merged) = evaluate_rows(load(*given, TUNED), tmp_path, lambda line: None)
    assert own.key != frozen[0].key and own.pixels != frozen[0].pixels and merged.pixels != frozen[1].pixels
    assert min(mean_iou(row.counts.sum(0)) for row in (own, merged)) > 0.5  # of four classes
    assert (own.gmacs, own.params, merged.gmacs) == (frozen[0].gmacs, frozen[0].params, frozen[1].gmacs)
    alone = load("methods=[]", "budgets=[]", *given[2:], TUNED, f"rows={{one: {merged.merge}}}")
    _, (_, again) = evaluate_rows(alone, tmp_path / "alone", lambda line: None)
    assert again.pixels == merged.pixels  # whatever was trained before it
    _, (few, _) = evaluate_rows(load(*given, TUNED, "probe.patches=40"), tmp_path, lambda line: None)
    assert few.key == own.key  # no features are kept


def test_a_model_is_trained_on_images_of_the_rows_size_in_its_precision(load, monkeypatch):
    settings, seen = load("sizes=[96]", "data.train=6", "data.test=1", "precision=bf16", TUNED), []
    monkeypatch.setattr(fitting, "fit_together", lambda *given: seen.append(given) or (given[0], torch.nn.Identity()))
    model, way = at_size(settings, "96 px", 96, torch.device("cpu")), settings.ways()["96 px"]
    subject = load_subject(settings)
    fitting.fitted(settings, subject, model, way)
    maps, images, shares, (mean, std), _, autocast = seen[0]
    shown = torch.cat([part for part, _ in batches(settings, subject, subject.images.train, 96)])
    assert torch.equal(images(torch.tensor([4, 1])), shown[[4, 1]]) and shown.shape == (6, 3, 96, 96)
    with torch.no_grad(), autocast:
        assert torch.is_autocast_enabled("cpu")
        found = maps(shown).float()
    assert shares.shape == (6, 6, 6, 4)
    torch.testing.assert_close(mean, found.mean((0, 2, 3)), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(std, found.std((0, 2, 3), correction=0), atol=1e-2, rtol=1e-2)


def test_the_grid_is_a_part_of_a_row(load, tmp_path, monkeypatch):
    given = ("methods=[]", "budgets=[]", "sizes=[32]", "data.train=4", "data.test=2")
    _, (own, small) = evaluate_rows(load(*given), tmp_path, lambda line: None)
    settings = load(*given, "probe.grid=4")
    subject, (same, fine) = evaluate_rows(settings, tmp_path, lambda line: None)
    assert same.pixels == own.pixels and fine.pixels != small.pixels and fine.key != small.key
    assert fine.gmacs - small.gmacs == pytest.approx((16 - 4) * 64 * 4 / 1e9)  # the probe's, of each patch
    seen, true = [], Maps.forward
    monkeypatch.setattr(Maps, "forward", lambda self, images: seen.append(true(self, images)) or seen[-1])
    time_rows(settings, subject, [same, fine], 1)
    assert {maps.shape[2:] for maps in seen} == {(4, 4)}


@pytest.mark.parametrize("arch", ["levit_128s", pytest.param("tiny_vit_5m_224", marks=pytest.mark.slow)])
def test_cached_biases_of_attention_are_those_of_the_trained_weights(arch):
    torch.manual_seed(0)
    model = timm.create_model(arch).eval()
    model.img_size, model.in_chans = 224, 3
    images = torch.randn(4, 3, 224, 224)
    with torch.no_grad():
        found = Maps(model, None)(images)  # fills the caches
    moments = found.mean((0, 2, 3)), found.std((0, 2, 3))
    shares = F.one_hot(torch.randint(0, 2, (4, *found.shape[2:])), 2).float()
    quick = QUICK.model_copy(update={"model_lr": 1e-1, "batch_size": 2, "epochs": 2})
    trained, _ = fit_together(
        Maps(model, None), lambda chosen: images[chosen], shares, moments, quick, torch.autocast("cpu", enabled=False)
    )
    with torch.no_grad():
        own = trained(images)
        trained.train().eval()  # empties timm's caches
        assert torch.equal(trained(images), own) and not torch.equal(own, found)


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 11])
def test_any_number_of_steps(stripes, steps):
    maps, shares = stripes
    assert fit_stage(maps[:8], shares[:8], QUICK.model_copy(update={"epochs": steps}))(maps).isfinite().all()


def test_dropout_is_of_channels_in_training_alone(stripes):
    maps, shares = stripes
    short = QUICK.model_copy(update={"epochs": 1})
    one, other = (fit_stage(maps, shares, short.model_copy(update={"dropout": share})) for share in (0.0, 0.9))
    assert not torch.equal(one(maps), other(maps)) and torch.equal(other(maps), other(maps))


def test_a_channel_that_never_changes_in_training_counts_nothing(stripes):
    maps, shares = stripes
    maps = torch.cat([maps, torch.zeros(64, 1, 6, 6)], dim=1)
    stage = fit_stage(maps, shares, QUICK.model_copy(update={"epochs": 2}))
    awake = maps.clone()
    awake[:, 3] = 1
    assert torch.equal(stage(awake), stage(maps))


def test_images_without_a_label_in_a_step_are_borne(stripes):
    maps, shares = stripes
    shares[:] = 0
    assert fit_stage(maps, shares, QUICK.model_copy(update={"epochs": 1}))(maps).isfinite().all()


def test_single_patches(stripes):
    maps, shares = stripes
    maps, shares = maps[:9, :, :1, :1], shares[:9, :1, :1]
    assert fit_stage(maps, shares, QUICK.model_copy(update={"epochs": 2}))(maps).shape == (9, 2, 1, 1)  # 8 and 1
    with pytest.raises(UserError, match="probe.cnn.batch_size = 1: a step has a single patch"):
        fit_stage(maps, shares, QUICK.model_copy(update={"batch_size": 1}))
    with pytest.raises(UserError, match="a step has a single patch"):
        fit_stage(maps[:1], shares[:1], QUICK)


def test_a_training_that_diverges_is_an_error(stripes):
    wild = StageSettings(block="convnext", depth=4, dim=4, layer_scale=1000, lr=100, epochs=11)
    with pytest.raises(UserError, match="probe.cnn.lr = 100.0: the training of the CNN stage diverged"):
        fit_stage(*stripes, wild)


@pytest.mark.parametrize("block, kind", [("residual", ResidualBlock), ("convnext", ConvNeXtBlock)])
def test_a_stage_has_the_blocks_of_its_settings(block, kind):
    stage = CNNStage(StageSettings(block=block, depth=2, dim=8), 5, 3)
    assert [type(part) for part in stage.blocks] == [kind, kind]
    assert stage.eval()(torch.randn(2, 5, 4, 3)).shape == (2, 3, 4, 3)


def test_rows_are_fitted_with_a_stage_of_their_own(load, tmp_path, monkeypatch, caplog):
    given = ("methods=[]", "budgets=[]", "sizes=[32]", "data.train=8", "data.test=3")
    stage = "probe.cnn={dim: 8, epochs: 5, lr: 1e-2}"
    _, (linear, _) = evaluate_rows(load(*given), tmp_path, lambda line: None)
    settings = load(*given, stage)
    subject, (own, small) = evaluate_rows(settings, tmp_path, lambda line: None)
    assert linear.key != own.key and linear.pixels != own.pixels
    proj, block, last = 64 * 8, 2 * 9 * 8 * 8, 8 * 4
    assert own.gmacs - linear.gmacs == pytest.approx(16 * (proj + block + last - 64 * 4) / 1e9)
    assert small.gmacs < own.gmacs and own.params > linear.params and "trained on" not in caplog.text
    _, (same, _) = evaluate_rows(load(*given, stage, "probe.l2=1"), tmp_path, lambda line: None)
    assert same.key == own.key  # what belongs to the linear probe does not matter
    _, (few, _) = evaluate_rows(load(*given, stage, "probe.patches=40"), tmp_path, lambda line: None)
    assert few.pixels != own.pixels and "the stage is trained on 2 of 8 images" in caplog.text
    timed = []
    monkeypatch.setattr(timing, "CNNStage", lambda *of: timed.append(CNNStage(*of)) or timed[-1])
    times = time_rows(settings, subject, [own, small], 1)
    assert [part.proj.in_channels for part in timed] == [64, 64] and all(len(values) == 1 for values in times.values())


def test_a_key_of_a_linear_probe_is_as_before_there_was_a_stage(load, tmp_path, monkeypatch):
    """What was evaluated once is not evaluated again because the settings have a key more."""
    settings, keys = load("methods=[]", "budgets=[]", "sizes=[32]", "data.train=2", "data.test=1"), []
    true = Comparison.key
    monkeypatch.setattr(Comparison, "key", lambda self, *of: keys.append(self.content[3]) or true(self, *of))
    evaluate_rows(settings, tmp_path, lambda line: None)
    assert keys[0] == {"blocks": None, "l2": 1e-3, "patches": 100_000, "steps": 200}


@pytest.mark.parametrize("name", ["timm:test_resnet", "torchvision:squeezenet1_1"])
def test_cnns_are_measured_without_merging(load, tmp_path, name):
    library, _, arch = name.partition(":")
    torch.manual_seed(0)
    model = timm.create_model(arch) if library == "timm" else torchvision.models.get_model(arch)
    save_file(model.state_dict(), tmp_path / "cnn.safetensors")
    given = (f"model={{name: {name}, img_size: 64, weights: {tmp_path / 'cnn.safetensors'}}}", "data.test=3")
    few = ("data.train=8", "probe.cnn={dim: 4, epochs: 2}")
    _, (own, larger) = evaluate_rows(
        load(*given, *few, "methods=[]", "budgets=[]", "sizes=[96]"), tmp_path, lambda line: None
    )
    assert larger.gmacs > own.gmacs > 0 and own.counts.shape == (3, 3, 4)
    with pytest.raises(UserError, match="row 'tome, r = 0': .*wrap"):
        evaluate_rows(load(*given), tmp_path, lambda line: None)
