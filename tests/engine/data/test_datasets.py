"""The table of datasets: what an entry may be, and what follows from adding one."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Literal

import pytest
import torch
from pydantic import Field

from engine.data import DATASETS, Source, SplitSettings, build_data, check_datasets, load_raw
from engine.data.check.preflight import check_source, kinds, source_settings
from engine.data.settings import DataPath, DataSettings, FileSettings
from models.settings import Settings, UserError
from tests.engine.data.conftest import save_image
from tests.paths import ROOT


class FlowersSettings(FileSettings):
    """`path` is a folder of files that are called after their class, such as rose_1.png."""

    name: Literal["flowers"] = "flowers"
    path: DataPath = Field(description="the folder")


def find_flowers(settings: FlowersSettings) -> Source:
    paths = sorted(Path(settings.path).glob("*.png"))
    names = [path.stem.partition("_")[0] for path in paths]
    classes = sorted(set(names))
    labels = torch.tensor([classes.index(name) for name in names])
    return Source(f"data.path = {settings.path!r}", classes, {"train": (paths, labels)})


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    for i in range(12):
        save_image(tmp_path / f"{('rose', 'tulip')[i % 2]}_{i}.png", i)
    monkeypatch.setitem(DATASETS, "flowers", (FlowersSettings, find_flowers))
    return tmp_path


def test_the_table_is_sound():
    check_datasets(DATASETS)


def test_a_dataset_of_files_is_a_class_a_function_and_a_line(flowers):
    """Decoding, splits, the preflight and its kinds follow."""
    settings = FlowersSettings(path=str(flowers), size=8)
    raw = load_raw(settings)
    assert raw.classes == ["rose", "tulip"] and raw.train.images.shape == (12, 3, 8, 8)
    data = build_data(settings, SplitSettings(test=0.25, val=0.25), seed=0)
    assert [len(split) for split in (data.train, data.val, data.test)] == [6, 2, 4]
    assert kinds() == ["folder", "kaggle", "csv", "shards", "flowers"]
    report = check_source(source_settings(str(flowers), "flowers"))
    assert report.counts == {"train": [6, 6]} and not report.findings
    (flowers / "rose_0.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 12 images cannot be read: .*rose_0.png"):
        load_raw(settings)
    assert len(load_raw(FlowersSettings(path=str(flowers), size=8, on_error="skip")).train) == 11


def test_kinds_that_cannot_be_checked(tmp_path):
    with pytest.raises(UserError, match="--kind dtd: not a dataset of image files in a path; "):
        source_settings(str(tmp_path), "dtd")
    with pytest.raises(UserError, match=r"--kind foldr: .*did you mean folder\?"):
        source_settings(str(tmp_path), "foldr")


class Nameless(DataSettings):
    """A settings class that does not say which dataset it is of."""


@pytest.mark.parametrize(
    "entry",
    [find_flowers, (find_flowers,), (find_flowers, FlowersSettings), ("a", "b"), (Settings, find_flowers), None],
)
def test_an_entry_that_is_no_pair_says_what_to_write(entry):
    message = r"DATASETS\['flowers'\] is .*; write \(FlowersSettings, find_flowers\), a class derived from FileS"
    with pytest.raises(TypeError, match=message):
        check_datasets({"flowers": entry})


@pytest.mark.parametrize("cls", [Nameless, DATASETS["folder"][0]])
def test_the_settings_name_their_dataset(cls):
    message = rf"DATASETS\['flowers'\]: {cls.__name__} needs the field name: Literal\['flowers'\] = 'flowers'"
    with pytest.raises(TypeError, match=message):
        check_datasets({"flowers": (cls, find_flowers)})


def test_the_example_of_the_docs_is_a_dataset(flowers):
    text = (ROOT / "docs" / "data.md").read_text()
    code = text.partition("## Adding a dataset")[2].partition("```python\n")[2].partition("```")[0]
    module = types.ModuleType("flowers_of_the_docs")
    sys.modules[module.__name__] = module  # pydantic looks annotations up there
    try:
        exec(compile(code, "docs/data.md", "exec"), vars(module))
    finally:
        del sys.modules[module.__name__]
    check_datasets({"flowers": (module.FlowersSettings, module.find_flowers)})
    source = module.find_flowers(module.FlowersSettings(path=str(flowers), size=8))
    assert source.classes == ["rose", "tulip"] and len(source.samples["train"][0]) == 12
