"""What TensorBoard shows of several finished runs, read as its server reads it."""

from __future__ import annotations

import io
import shlex

import numpy as np
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.get_experiment import Handler as Columns
from tensorboard.plugins.hparams.list_session_groups import Handler as Rows

from engine.runs.folder import RunFolder
from engine.runs.records.metrics import metrics_of
from engine.runs.trackers.tensorboard import board_tag
from engine.settings.schema import RunSettings
from engine.train.experiment import run_experiment
from engine.train.session import train
from models.settings import check
from tests.engine.conftest import TINY
from tests.quiet import end_log
from tests.tools.tables import read_markdown

SHORT = {**TINY, "augment": {}, "train": {"epochs": 2, "batch_size": 64, "lr": 0.01}}
OTHERS = {"name": "lenet", "model": {"name": "lenet5", "img_size": 8, "padding": 2, "in_chans": 1}, "seed": 3}
RUNS = {"merged": {"name": "merged"}, "other_seed": {"name": "other_seed", "seed": 1}, "lenet": OTHERS}
COMMAND = ["tools/train.py", "--cfg", "digits/hybrid", "name=a run"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs: two of one model with other seeds, and a model without tokens."""
    out = tmp_path_factory.mktemp("runs")
    for changes in RUNS.values():
        train(check(RunSettings, {**SHORT, **changes, "out": str(out)}), command=shlex.join(COMMAND))
        end_log()
    return out


def board(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


def cards(folder, tag) -> list[str]:
    return [event.tensor_proto.string_val[0].decode() for event in board(folder).Tensors(tag)]


def test_all_runs_have_the_same_curves_over_steps(runs):
    for name in RUNS:
        shown, rows = board(runs / name), metrics_of(runs / name / "metrics.jsonl")
        tags = shown.Tags()["scalars"]
        assert tags == board(runs / "merged").Tags()["scalars"]
        assert {tag.split("/")[0] for tag in tags} == {"loss", "metrics", "training"}
        for tag in {tag for row in rows for tag in row} - {"step"}:
            points = [(row["step"], pytest.approx(row[tag], rel=1e-5)) for row in rows if tag in row]
            assert [(event.step, event.value) for event in shown.Scalars(board_tag(tag))] == points
            assert len(points) > 1, "a chart with one dot"


def test_the_first_group_is_the_loss_and_the_second_the_metrics():
    """TensorBoard sorts groups and opens two of them."""
    tags = sorted(map(board_tag, ("lr", "images_per_second", "train/loss", "val/loss", "train/accuracy", "val/top1")))
    assert tags == [
        "loss/train",
        "loss/val",
        "metrics/train_accuracy",
        "metrics/val_top1",
        "training/images_per_second",
        "training/lr",
    ]


@pytest.fixture(scope="module")
def hparams(runs):
    """The columns of the HPARAMS page, in their order, and its rows by run, from TensorBoard's own code."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(runs)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(runs))
    backend = Context(TBContext(data_provider=provider))
    columns = Columns(RequestContext(), backend, "", api_pb2.GetExperimentRequest()).run()
    every = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING]
    request = api_pb2.ListSessionGroupsRequest(allowed_statuses=every, slice_size=100)
    rows = Rows(RequestContext(), backend, "", request).run().session_groups
    return columns, {row.name: row for row in rows}


def test_the_first_columns_of_hparams_are_accuracy_cost_and_speed(hparams):
    columns, _ = hparams
    names = [info.name for info in columns.hparam_infos]
    assert names[:5] == ["Accuracy (test), %", "GMACs", "Images/s", "Merging", "Model"]
    assert {"seed", "train.lr", "model.merge.r"} <= set(names) and not {"name", "out"} & set(names)
    differing = [info.name for info in columns.hparam_infos if info.differs]
    assert names[: len(differing)] == differing and "seed" in differing and "train.lr" not in differing


def test_each_row_of_hparams_has_the_results_and_settings_of_its_run(runs, hparams):
    _, rows = hparams
    assert set(rows) == set(RUNS)
    for name in RUNS:
        row, results = rows[name].hparams, RunFolder(runs / name).read_results()
        assert row["Accuracy (test), %"].number_value == 100 * results.test_score
        assert row["GMACs"].number_value == results.gmacs
        assert row["Images/s"].number_value == results.images_per_second
        assert row["Model"].string_value == results.model
        assert row["Merging"].string_value == ("none" if name == "lenet" else "tome, 6 tokens")
        assert row["seed"].number_value == RUNS[name].get("seed", 0)
        assert row["train.lr"].number_value == 0.01
        assert ("model.merge.r" in row) == (name != "lenet")
        shown = {metric.name.tag: metric.value for metric in rows[name].metric_values}
        last = metrics_of(runs / name / "metrics.jsonl")[-1]
        assert shown["metrics/val_top1"] == pytest.approx(last["val/top1"])


def test_a_card_has_the_command_and_the_settings(runs):
    for name in RUNS:
        (card,) = cards(runs / name, "run")
        _, command, between, settings, _ = card.split("```")
        assert shlex.split(command) == COMMAND
        assert ("Tokens after each block: 14, 11" in between) == (name != "lenet")
        assert yaml.safe_load(settings) == yaml.safe_load((runs / name / "settings.yaml").read_text())


def test_a_card_has_the_results(runs):
    for name in RUNS:
        (card,) = cards(runs / name, "results")
        results, said = RunFolder(runs / name).read_results(), dict(read_markdown(card)[1:])
        assert said["test top-1"] == f"{100 * results.test_score:.2f} %"
        assert said["best val top-1"] == f"{100 * results.val_score:.2f} %"
        assert said["best step"] == f"{results.best_step} of {results.steps}"


def test_a_run_without_a_command_says_how_to_train_it_again(tiny, folder):
    settings = tiny(train={"epochs": 1})
    run_experiment(settings, folder)
    (card,) = cards(folder, "run")
    assert card.startswith("```\ntools/train.py --cfg settings.yaml name=tiny\n```\n")


def test_wrong_test_images_are_beside_the_wrong_validation_images(runs):
    for name in RUNS:
        shown, results = board(runs / name), RunFolder(runs / name).read_results()
        assert [event.step for event in shown.Images("wrong/val")] == [5, 10]
        (wrong,) = shown.Images("wrong/test")
        assert wrong.step == results.steps
        assert np.asarray(Image.open(io.BytesIO(wrong.encoded_image_string))).std() > 0


def test_no_wrong_images_where_none_are_asked_for(tiny, folder):
    run_experiment(tiny(train={"epochs": 1}, log={"images": 0}), folder)
    assert board(folder).Tags()["images"] == ["test/confusion", "test/confused"]
