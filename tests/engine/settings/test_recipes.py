"""What is filled in: the recipe of each mode of fine-tuning, and the number of classes."""

import pytest

from engine.settings.layers import load_settings, to_yaml
from models.settings.lenet5 import LeNet5Settings
from models.settings.vit import ViTSettings
from tests.engine.settings.settings_files import BODY, write


@pytest.mark.parametrize(("mode", "lr"), [("head", 1e-3), ("lora", 2e-4), ("full", 5e-5)])
def test_each_mode_of_fine_tuning_has_a_learning_rate_of_its_own_by_default(tmp_path, mode, lr):
    path = write(tmp_path, "a.yaml", BODY + f"finetune: {{mode: {mode}}}\n")
    assert load_settings(path).train.lr == load_settings("zoo/squeezenet", [f"finetune.mode={mode}"]).train.lr == lr
    assert load_settings(path, ["train.lr=0.3"]).train.lr == 0.3
    stored = write(tmp_path, "settings.yaml", to_yaml(load_settings(path)))
    assert load_settings(stored) == load_settings(path)


def test_a_file_s_own_learning_rate_wins_over_the_recipe(tmp_path):
    path = write(tmp_path, "a.yaml", BODY + "finetune: {mode: head}\ntrain: {lr: 0.2, warmup_epochs: 1}\n")
    assert (load_settings(path).train.lr, load_settings(path).train.warmup_epochs) == (0.2, 1)
    assert load_settings(path, ["finetune=null"]).train.lr == 0.2


def augmentation(cfg, *overrides):
    """What is switched on under `augment:`."""
    return load_settings(cfg, overrides).augment.model_dump(exclude_defaults=True)


def test_a_head_learns_from_images_as_they_are_and_the_other_modes_augment_lightly(tmp_path):
    assert augmentation("zoo/squeezenet", "finetune.mode=head") == {}
    for mode in ("lora", "full"):
        assert augmentation("zoo/squeezenet", f"finetune.mode={mode}") == {"scale": 0.5, "flip": True}
    gradual = "finetune={mode: gradual, groups: [{parts: [head], lr: 1e-3}]}"
    assert augmentation("zoo/squeezenet", gradual) == {"scale": 0.5, "flip": True}
    stored = write(tmp_path, "settings.yaml", to_yaml(load_settings("zoo/squeezenet", ["finetune.mode=head"])))
    assert augmentation(stored, "finetune.mode=full") == {}, "a run folder says all"


def test_augmentation_of_a_file_replaces_that_of_the_recipe_and_the_command_line_changes_single_keys(tmp_path):
    path = write(tmp_path, "a.yaml", BODY + "finetune: {mode: full}\naugment: {crop: 1}\n")
    assert augmentation(path) == {"crop": 1}
    path = write(tmp_path, "a.yaml", BODY + "finetune: {mode: full}\naugment: {}\n")
    assert augmentation(path) == {}
    assert augmentation("zoo/squeezenet", "augment.flip=false", "augment.erase=0.25") == {"scale": 0.5, "erase": 0.25}
    listed = augmentation("zoo/squeezenet", "augment.transforms=[{name: RandomHorizontalFlip}]")
    assert [entry["name"] for entry in listed["transforms"]] == ["RandomHorizontalFlip"] and len(listed) == 1


def test_pretrained_weights_without_a_finetune_section_have_the_recipe_of_full(tmp_path):
    full = load_settings("zoo/squeezenet")
    assert full.finetune.mode == "full"
    without = load_settings("zoo/squeezenet", ["finetune=null"])
    assert without.finetune is None and without == full.model_copy(update={"finetune": None})

    scratch = load_settings("zoo/squeezenet", ["finetune=null", "model.weights=null"])
    assert scratch.train.lr == 1e-3 and not scratch.augment.model_dump(exclude_defaults=True)

    path = write(tmp_path, "a.yaml", BODY)
    assert load_settings(path, ["model.weights=best.pt"]).train.lr == 5e-5
    assert load_settings(path, ["model.weights=best.pt", "train.lr=0.3"]).train.lr == 0.3
    path = write(tmp_path, "a.yaml", BODY + "augment: {crop: 1}\ntrain: {lr: 0.2}\n")
    own = load_settings(path, ["model.weights=best.pt"])
    assert own.train.lr == 0.2 and own.augment == load_settings(path).augment, "the file's own values come first"


def test_the_number_of_classes_is_the_dataset_s_where_it_is_published(tmp_path):
    for name, classes in (("cifar10/hybrid", 10), ("cifar100/vit", 100), ("transfer/dtd_vit", 47)):
        assert load_settings(name).model.num_classes == classes
    assert load_settings("zoo/squeezenet").model.num_classes is None, "the images say how many"
    assert load_settings("cifar10/hybrid", ["data.name=npz", "data.path=x.npz"]).model.num_classes is None
    assert load_settings("cifar10/hybrid", ["model.num_classes=7"]).model.num_classes == 7
    body = write(tmp_path, "a.yaml", BODY)
    assert load_settings(body).with_classes(3).model.num_classes == 10
    assert load_settings("zoo/squeezenet").with_classes(3).model.num_classes == 3


def test_a_model_without_a_number_of_classes_has_the_usual_one():
    assert (ViTSettings().num_classes, ViTSettings().classes, ViTSettings(num_classes=7).classes) == (None, 1000, 7)
    assert LeNet5Settings().classes == 10
