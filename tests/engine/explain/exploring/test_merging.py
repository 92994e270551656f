"""The budget of the page: what it costs is what was asked for, and the model's weights stay what they were."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from engine.explain.exploring.looking import Explorer
from engine.explain.exploring.merging import BASELINES, WHOLE, Merging
from engine.explain.exploring.subject import of_name, of_run
from engine.figures.merge_tracing import UNTRAINED
from models.interface import tokens_per_block
from models.merging import wrap
from models.settings import UserError
from tests.tools.colours import VIT, colour_run

ARCH = "timm:vit_tiny_patch16_224"
SMALL = ["model.options={depth: 4}", "model.num_classes=5", "model.img_size=112"]  # 49 patches
MERGED = {**VIT, "img_size": 16, "depth": 4, "merge": {"method": "pitome", "r": 9}}
CNN = {"name": "cnn", "img_size": 8, "width": 4, "depths": [1]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=112, depth=4, num_classes=5)
    file = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(model.state_dict(), file)
    return file


@pytest.fixture
def zoo(weights):
    return of_name(ARCH, str(weights), SMALL)


def logits(merging, subject, image):
    with torch.inference_mode():
        return merging.model(subject.input_of(image))


@pytest.mark.slow
def test_every_method_meets_every_budget(zoo):
    merging = Merging(zoo)
    assert sorted(merging.methods) == sorted(UNTRAINED) and merging.start == WHOLE
    assert tuple(merging.methods[-2:]) == BASELINES and merging.methods[0] == "tome"
    for method in merging.methods:
        least = merging.least(method)
        assert 1 <= least < 60
        budget = merging.apply(method, 80)
        close = 0.1 if method in ("grid", "pool") else 0.02  # the nearest that 49 patches allow
        assert budget.gmacs == pytest.approx(0.8 * merging.whole.gmacs, rel=close), method
        assert budget.tokens == 50 - sum(budget.removed) == tokens_per_block(merging.model)[-1]
    assert merging.apply("tome", 0).gmacs <= merging.whole.gmacs * merging.least("tome") / 100  # no further than it can


def test_it_is_what_wrap_does(zoo, weights):
    image = torch.randint(0, 256, (3, 112, 112), dtype=torch.uint8)
    merging = Merging(zoo)
    merging.apply("tome", 40)
    budget = merging.apply("facility_location", 70)
    found = logits(merging, zoo, image)
    other = of_name(ARCH, str(weights), SMALL)
    wrap(other.model, method="facility_location", target_ratio=1 / 0.7)
    torch.testing.assert_close(found, other.model(other.input_of(image)).detach(), rtol=0, atol=0)
    assert budget == merging.apply("facility_location", 70)  # from memory


def test_without_merging_it_is_the_model_itself(zoo, weights):
    image = torch.randint(0, 256, (3, 112, 112), dtype=torch.uint8)
    merging = Merging(zoo)
    merging.apply("tome", 30)
    assert merging.apply("tome", WHOLE) == merging.whole
    plain = of_name(ARCH, str(weights), SMALL)
    torch.testing.assert_close(logits(merging, zoo, image), plain.model(plain.input_of(image)).detach(), rtol=0, atol=0)


def test_a_run_begins_as_it_was_trained(tmp_path):
    subject = of_run(colour_run(tmp_path / "run", model=MERGED))
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    trained = subject.model(subject.input_of(image)).detach()
    merging = Merging(subject)
    assert merging.methods[0] == "pitome" and merging.start < WHOLE
    for percent in (WHOLE, 70, merging.start):
        budget = merging.apply("pitome", percent)
    assert budget.removed == [9, 9, 9, 9]
    torch.testing.assert_close(logits(merging, subject, image), trained, rtol=0, atol=0)
    assert merging.apply("tome", 80).removed != budget.removed


def test_a_method_that_learned_keeps_what_it_learned(tmp_path):
    """Also after another method, which has no place for it."""
    learned = {**MERGED, "merge": {"method": "dtem", "r": 9}}
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    subject = of_run(colour_run(tmp_path / "run", model=learned))
    trained = subject.model(subject.input_of(image)).detach()
    merging = Merging(subject)
    merging.apply("tome", 70)
    merging.apply("dtem", merging.start)
    torch.testing.assert_close(logits(merging, subject, image), trained, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["patchmerger", "sit"])
def test_a_method_that_learned_a_number_of_tokens_has_one_budget(tmp_path, method):
    """And none; the nearer of the two. Other methods, which learn nothing, have all."""
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    subject = of_run(colour_run(tmp_path / "run", model={**MERGED, "merge": {"method": method, "r": 9}}))
    trained = subject.model(subject.input_of(image)).detach()
    merging = Merging(subject)
    assert merging.methods == [method, *[name for name in merging.methods if name in UNTRAINED]]
    assert merging.least(method) == merging.start < WHOLE
    assert merging.apply("tome", 80).removed != [9, 9, 9, 9]
    assert merging.apply(method, WHOLE - 1) == merging.apply(method, WHOLE) == merging.whole
    assert merging.apply(method, merging.start + 1).removed == [9, 9, 9, 9]
    torch.testing.assert_close(logits(merging, subject, image), trained, rtol=1e-5, atol=1e-5)


def test_only_the_blocks_of_the_run_merge(tmp_path):
    run = colour_run(tmp_path / "run", model={**MERGED, "merge": {"method": "tome", "r": 8, "first_block": 3}})
    merging = Merging(of_run(run))
    for method in ("tome", "pitome"):
        removed = merging.apply(method, 80).removed
        assert removed[:2] == [0, 0] and any(removed)
    given = Merging(of_run(run, ["merge.first_block=1", "merge.keep={rate: 0.5, blocks: [2]}"]))
    assert [bool(n) for n in given.apply("tome", 80).removed] == [False, True, False, False]


def test_a_model_that_cannot_merge(tmp_path):
    subject = of_run(colour_run(tmp_path / "run", model=CNN, sharp=0))
    merging = Merging(subject)
    assert merging.methods == [] and merging.why_not == "cnn has no tokens"
    assert merging.apply("tome", 50) == merging.whole and merging.whole.gmacs > 0


def test_a_pretrained_model_that_cannot_merge(tmp_path):
    save_file(timm.create_model("test_resnet", num_classes=5).state_dict(), tmp_path / "cnn.safetensors")
    subject = of_name("timm:test_resnet", str(tmp_path / "cnn.safetensors"), ["model.num_classes=5"])
    explorer = Explorer(subject)
    assert explorer.merging.methods == [] and "no tokens to merge" in explorer.merging.why_not
    assert explorer.explainer == "gradcam" and "rollout" not in explorer.explainers


def test_a_name_that_is_none(weights):
    for name, says in (("lenet5", "--model lenet5: give timm:NAME"), ("timm:vit_tinny", "did you mean")):
        with pytest.raises(UserError, match=says):
            of_name(name, str(weights))
    with pytest.raises(UserError, match="--weights .*: its classifier does not fit"):
        of_name(ARCH, str(weights), [SMALL[0], SMALL[2]])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.in_chans=4", "model.in_chans = 4: images have 1 or 3 channels; leave it out"),
        ("model.weights=other.pth", "model.weights = '.*other.pth': given beside --weights"),
    ],
)
def test_settings_that_a_page_does_not_take(weights, override, message):
    with pytest.raises(UserError, match=message):
        of_name(ARCH, str(weights), [*SMALL, override])
