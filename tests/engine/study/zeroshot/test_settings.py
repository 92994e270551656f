"""The settings of tools/zeroshot.py: rows from methods and budgets, and what is refused."""

import re

import pytest

from engine.settings.layers import CONFIGS, load_file
from engine.study.zeroshot.settings import ZeroshotSettings
from engine.study.zeroshot.ways import Way
from models.merging.settings import MergeSettings
from models.settings import UserError
from models.settings.zoo import normalisation
from tests.paths import ROOT


def test_rows_are_methods_times_budgets_and_named_ones(load):
    rows = load("rows={late: {method: tome, r: [0, 0, 0, 2, 2, 2]}}", "model.merge.prop_attn=false").merged_ways()
    assert list(rows) == ["tome, r = 0", "tome, r = 4", "dpc_knn, r = 0", "dpc_knn, r = 4", "late"]
    assert rows["dpc_knn, r = 4"] == Way(MergeSettings(method="dpc_knn", r=4, prop_attn=False))
    assert rows["late"].merge.prop_attn  # a named row says all of it


def test_budgets_from_another_block_on_are_another_line():
    settings = load_file(ZeroshotSettings, "deit_small", ["methods=[tome]"], "zeroshot")
    names = [name for name in settings.merged_ways() if "1.5" in name]
    assert names == ["tome, 1.5 times fewer MACs", "tome from block 3, 1.5 times fewer MACs"]


@pytest.mark.parametrize(
    "text", [ZeroshotSettings.model_fields["rows"].description, (ROOT / "docs" / "comparing.md").read_text()]
)
def test_rows_are_named_as_documented(load, text):
    """A name with a comma is quoted in braces."""
    (example,) = re.findall(r'\{"[^"]*": \{method: [^}]*\}\}', text)
    rows = load("methods=[]", "budgets=[]", f"rows={example}").merged_ways()
    assert [name.count(", r = ") for name in rows] == [1]


def test_a_shared_budget_gives_way_to_the_rows_own(load):
    rows = load("model.merge={method: tome, target_ratio: 1.2, metric: tokens}").merged_ways()
    assert rows["tome, r = 4"] == Way(MergeSettings(method="tome", r=4, metric="tokens"))


@pytest.mark.parametrize(
    "override, message",
    [
        ("methods=[tomee]", "tomee"),
        ("methods=[none]", "none"),
        ("methods=[dtem]", "dtem"),
        ("methods=[]", "methods: none; every method is evaluated with every budget"),
        ("budgets=[]", "budgets: none"),
        ("budgets=[{r: 8, target_gmacs: 0.9}]", "one of r, keep, threshold, target_gmacs, target_ratio"),
        ("budgets=[{}]", "this has 0"),
        ("budgets=[{keep: {rate: 0.7}, first_block: 3}]", "budgets.0.first_block = 3: keep.blocks says which blocks"),
        ("budgets=[{r: [1, 0, 2], blocks: [3]}]", "budgets.0.blocks = [3]: r says which blocks"),
        ("budgets=[{r: {train: [0, 8]}}]", "nothing is trained here"),
        ("rows={unmerged: {method: tome, r: 4}}", "'unmerged': not a name for a row"),
        ("rows={x: {method: dtem, r: 4}}", "learns its metric in training"),
        ("rows={'tome, r = 4': {method: tome, r: 4}}", "the name of a method with a budget"),
        ("sizes=[64]", "sizes = [64]: 64 px is the model's own; leave it out"),
        ("sizes=[48, 48]", "must be different numbers of pixels"),
        ("sizes=[48]; rows={'48 px': {method: tome, r: 4}}", "the name of a row of sizes"),
        ("rows={x: {method: tome, r: 4, img_size: 0}}", "rows.x.img_size = 0"),
        ("model.weights=null", "model.weights: missing"),
        ("model.name=vit", "model.name"),
        ("metods=[tome]", "did you mean methods?"),
    ],
)
def test_mistakes(load, override, message):
    with pytest.raises(UserError) as raised:
        load(*override.split("; "))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_mae_is_normalised_as_its_authors_did():
    """timm's default weights of the same model have another mean, 0.5."""
    settings = load_file(ZeroshotSettings, "mae_b16", (), "zeroshot")
    assert normalisation(settings.model) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (settings.model.classes, settings.model.img_size) == (1000, 224)


@pytest.mark.parametrize("path", sorted((CONFIGS / "zeroshot").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_loads_by_its_name(path):
    settings = load_file(ZeroshotSettings, path.stem, (), "zeroshot")
    assert settings.name == path.stem and len(settings.merged_ways()) > 2
    commands = (f"# tools/zeroshot.py --cfg {path.stem} ", f"# tools/explain.py --evaluate {path.stem} ")
    assert path.read_text().startswith(commands)


def test_a_method_that_does_not_take_a_budget_is_named_with_one_key(load):
    with pytest.raises(UserError, match=r"^model\.merge\.threshold = 0\.9: not with pitome; give r, or use "):
        load("methods=[pitome]", "budgets=[{threshold: 0.9}]")
