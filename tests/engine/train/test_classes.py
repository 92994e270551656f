"""The number of classes is the data's where the settings do not give one."""

from pathlib import Path

import pytest
import torch

from engine.runs.restore import load_run
from engine.settings.layers import load_settings
from models.settings import UserError
from tests.engine.settings.settings_files import write
from tests.quiet import end_log
from tests.tools.colours import BLUE, GREEN, RED, SETTINGS, save_colour
from tools import train as train_tool

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def cfg(tmp_path, monkeypatch, capsys) -> str:
    """A settings file beside a folder of three classes."""
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        for name, colour in (("red", RED), ("green", GREEN), ("blue", BLUE)):
            save_colour(Path("images") / name / f"{number}.png", colour, seed=number)
    return write(tmp_path, "colours.yaml", SETTINGS)


def train(*argv: str) -> None:
    train_tool.main(list(argv))
    end_log()


def test_a_run_stores_the_data_s_number_and_goes_on_without_it_being_typed(cfg):
    train("--cfg", cfg, "train.steps=2")
    stored = load_settings("runs/colours/settings.yaml")
    assert load_settings(cfg).model.num_classes is None and stored.model.num_classes == 3
    assert load_run(Path("runs/colours")).model.num_classes == 3
    before = torch.load("runs/colours/best.pt", weights_only=True)["model"]["head.weight"]
    Path("runs/colours/results.json").unlink()
    train("--resume", "--cfg", cfg, "train.steps=2")
    train("--resume", "runs/colours")
    assert torch.load("runs/colours/best.pt", weights_only=True)["model"]["head.weight"].equal(before)


@pytest.mark.parametrize("names", [("Training", "Testing"), ("train_set", "Valid"), ("Train", "TEST")])
def test_folders_of_splits_by_any_name_are_no_classes(cfg, names):
    for i, name in enumerate(names):
        for file in Path("images").glob("*/*.png"):
            if int(file.stem) % 2 == i:
                new = Path("parted", name, file.parent.name, file.name)
                new.parent.mkdir(parents=True, exist_ok=True)
                new.write_bytes(file.read_bytes())
    train("--cfg", cfg, "data.path=parted", "train.steps=1")
    assert load_settings("runs/colours/settings.yaml").model.num_classes == 3
    state = torch.load("runs/colours/best.pt", weights_only=True)
    assert state["classes"] == ["blue", "green", "red"] and state["model"]["head.bias"].shape == (3,)


def test_a_trained_model_keeps_its_number(cfg):
    """No error asks for another number, which resuming and evaluating would refuse in turn."""
    train("--cfg", cfg, "train.steps=1")
    for number in range(8):
        save_colour(Path("images/zebra") / f"{number}.png", RED, seed=number)
    message = "model.num_classes = 3: the data has 4; .* restore its data, or train again"
    with pytest.raises(UserError, match=message):
        train("--resume", "runs/colours", "train.steps=2")
    with pytest.raises(UserError, match=message):
        load_run(Path("runs/colours"))


def test_folds_store_it_too(cfg):
    train("--cfg", cfg, "split.folds=2", "split.test=0")
    for folder in ("runs/colours", "runs/colours/fold0", "runs/colours/fold1"):
        assert load_settings(f"{folder}/settings.yaml").model.num_classes == 3
    train("--resume", "--cfg", cfg, "split.folds=2", "split.test=0")


def test_another_number_stays_an_error(cfg):
    with pytest.raises(UserError, match="model.num_classes = 4: the data has 3; set model.num_classes=3"):
        train("--cfg", cfg, "model.num_classes=4")
    assert not Path("runs/colours/settings.yaml").exists()


def test_a_budget_is_solved_for_the_data_s_number(cfg):
    budget = ["model.depth=4", "model.patch_size=1", "merge.target_ratio=1.2"]
    train("--cfg", cfg, *budget, "train.steps=1")
    assert load_run(Path("runs/colours")).model.num_classes == 3
