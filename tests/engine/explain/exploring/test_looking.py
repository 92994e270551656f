"""What the page shows is what the model says, and what the other tools say of the same image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.explain.depth import trace
from engine.explain.explaining import explained
from engine.explain.exploring.looking import Explorer, Seen
from engine.explain.exploring.merging import WHOLE, Budget
from engine.explain.exploring.rendering import answer, fault, pictures
from engine.explain.exploring.subject import of_run
from engine.runs.restore import load_model
from engine.study.zeroshot.labels import class_names
from models.explain import EXPLAINERS
from models.settings import UserError
from tests.tools.colours import COLOURS, GREEN, VIT, colour_run

EVIL = "<script>alert(1)</script>&\"'"
MERGED = {**VIT, "img_size": 16, "merge": {"method": "tome", "r": 16}}
CNN = {"name": "cnn", "img_size": 8, "width": 4, "depths": [1]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return colour_run(tmp_path_factory.mktemp("looking") / "run", model=MERGED)


@pytest.fixture(scope="module")
def explorer(run):
    return Explorer(of_run(run), {"lime": {"samples": 40}})


@pytest.fixture
def green() -> Tensor:
    noise = torch.randint(-20, 21, (3, 16, 16), generator=torch.Generator().manual_seed(0))
    return (torch.tensor(GREEN)[:, None, None] + noise).clamp(0, 255).byte()


def test_prediction_cost_and_regions(run, explorer, green):
    seen = explorer.look(green, "tome", explorer.merging.start, "gradcam")
    trained = load_model(run)
    found = explained(trained, green[None], "gradcam")
    assert seen.top[0][0] == "10" and [name for name, _ in seen.top] != list(COLOURS)
    values = found.probabilities[0].sort(descending=True).values.tolist()
    assert [value for _, value in seen.top] == pytest.approx(values)
    last = trace(trained.model, (green[None].float() / 255 - 0.4)[0])[-1]
    assert (seen.patches, seen.left) == (64, 32) == (64, last.tokens)
    assert seen.budget.removed == [16, 16] and seen.budget.gmacs < seen.whole.gmacs
    assert seen.milliseconds > 0
    assert seen.photograph.shape == seen.regions.shape == seen.heat.shape == (448, 448, 3)
    assert torch.equal(seen.photograph[::28, ::28], green.permute(1, 2, 0))


def test_without_merging_each_patch_is_a_region(explorer, green):
    seen = explorer.look(green, "tome", WHOLE, "rollout")
    assert seen.left == seen.patches == 64 and seen.budget == seen.whole


def test_every_explanation_of_the_list_can_be_shown(explorer, green):
    assert explorer.explainers == list(EXPLAINERS) and explorer.explainer == "gradient_rollout"
    for name in explorer.explainers:
        assert explorer.look(green, "pitome", 80, name).heat.shape == (448, 448, 3)


def test_a_method_that_the_model_has_not(explorer, green):
    with pytest.raises(UserError, match="method dtem: not one of tome, "):
        explorer.look(green, "dtem", 80, "gradcam")


def test_a_model_that_cannot_merge(tmp_path):
    explorer = Explorer(of_run(colour_run(tmp_path / "run", model={**CNN, "in_chans": 1}, sharp=0)))
    image = explorer.subject.pixels(torch.full((3, 8, 8), 90, dtype=torch.uint8))
    assert image.shape == (1, 8, 8)
    seen = explorer.look(image, "", WHOLE, explorer.explainer)
    assert seen.regions is None and seen.left is None
    page = pictures(seen, explorer.explainer) + answer(seen)
    assert page.count("<img") == 2 and "without merging" not in page and "GMACs" in page


def test_names_are_text():
    picture = torch.zeros(4, 4, 3, dtype=torch.uint8)
    budget = Budget([1, 0], 0.5, 4)
    seen = Seen([(EVIL, 0.9)], budget, budget, 1.0, EVIL, picture, picture, 4, 3, picture, EVIL)
    for html in (pictures(seen, "lime"), answer(seen), fault(EVIL + "\nb")):
        assert "<script" not in html and "&lt;script&gt;" in html and "\n" not in html


def test_names_of_imagenet():
    names = class_names(1000)
    assert len(set(names)) == 1000 and names[285] == "Egyptian cat" and names[134] == "crane (134)"
    assert class_names(3) == ["0", "1", "2"]
