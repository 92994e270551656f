"""Rows of tools/zeroshot.py in comparisons: the same numbers, and images that can be paired."""

import json

import pytest

from engine.study.compare import outputs
from engine.study.compare.differences import differences
from engine.study.compare.reading import read
from engine.study.zeroshot.report import compared, write_outputs
from models.settings import UserError
from tests.engine.study.zeroshot.test_report import made_up
from tools import compare as tool


@pytest.fixture
def folder(load, tmp_path):
    images, rows = made_up()
    answer = compared(images, rows, {row.name: [4.0, 2.0, 3.0] for row in rows})
    write_outputs(tmp_path, load(), images, answer)
    return tmp_path, images, answer


def test_points_have_the_numbers_of_the_table(folder):
    path, _, answer = folder
    points = read([path]).points
    assert [point.name for point in points] == [f"small, {row.row.name}" for row in answer]
    assert [point.score for point in points] == [row.accuracy for row in answer]
    assert [point.costs["gmacs"] for point in points] == [row.row.gmacs for row in answer]
    assert {point.costs["ms"] for point in points} == {3.0}
    assert [point.line for point in points] == [None, "small, tome", "small, tome"]
    assert points[2].extra["agreement with unmerged, %"] == 100 * answer[2].agreement
    records = outputs.records(points)
    assert [record["score_percent"] for record in records] == [100 * row.accuracy for row in answer]


def test_their_images_can_be_paired(folder):
    path, images, answer = folder
    (point, *_), targets = read([path]).points[1:], images.targets.numpy()
    (outcome,) = [read_one() for read_one in point.outcomes.values()]
    assert outcome.images == images.names
    assert (outcome.correct == (answer[1].row.predictions == targets)).all()
    assert differences(read([path]).points, lambda note: pytest.fail(note))


def test_there_are_no_curves_of_what_was_not_trained(folder):
    path, *_ = folder
    with pytest.raises(UserError, match=r"--plot .*x.png: no row is of a run"):
        tool.main([str(path), "--plot", str(path / "x.png")])
    assert not (path / "x.png").exists()


@pytest.mark.parametrize(
    "broken, message",
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"version": 1, "rows": [{}]}', "damaged"),
        ('{"version": 9, "rows": []}', "of a newer version"),
    ],
)
def test_a_damaged_record_is_named(folder, broken, message):
    path, *_ = folder
    (path / "zeroshot.json").write_text(broken)
    with pytest.raises(UserError, match=f"zeroshot.json: {message}"):
        read([path])


def test_predictions_of_another_comparison_are_refused(folder):
    path, *_ = folder
    record = json.loads((path / "zeroshot.json").read_text())
    record["rows"].reverse()
    (path / "zeroshot.json").write_text(json.dumps(record))
    point = read([path]).points[0]
    with pytest.raises(UserError, match="predictions.npz has other rows"):
        next(iter(point.outcomes.values()))()
