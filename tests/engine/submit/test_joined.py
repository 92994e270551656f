"""Labels of an image are joined in a submission as they are in its sample."""

from __future__ import annotations

import pytest
import torch

from engine.submit.joined import joint_of
from engine.submit.predict import Predictions
from engine.submit.sample import read_sample
from engine.submit.submission import Outputs, write_submission
from engine.submit.validate import validate
from engine.tasks import MANY_LABELS
from tests.engine.submit.text_files import FILES, text_file

CLASSES = ["Effusion", "Mass", "No Finding"]
PROBABILITIES = torch.tensor([[0.9, 0.8, 0.1], [0.1, 0.1, 0.9], [0.1, 0.2, 0.3]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("cells", "classes", "joint"),
    [
        (["Mass|Effusion", "Mass"], CLASSES, "|"),
        (["Mass|", "No Finding"], CLASSES, "|"),
        (["Mass, Effusion", "Effusion, No Finding", "Mass,Effusion"], CLASSES, ", "),
        (["Mass; Effusion", ""], CLASSES, "; "),
        (["Mass\nEffusion"], CLASSES, "\n"),
        (["mass|EFFUSION"], CLASSES, "|"),  # names may be spelled in another way
        (["haze primary", "clear"], ["clear", "haze", "primary"], " "),
        (["a-b"], ["a", "b"], "-"),
        (["e\u0301|b"], ["\xe9", "b"], "|"),
        (["a;b|c"], ["a;b", "c"], "|"),
        (["Mass Effusion"], CLASSES, None),  # a blank is also within a name
        (["a-b"], ["a", "b", "a-b"], None),
        (["Mass|Nodule"], CLASSES, None),
        (["Mass|Effusion", "Mass;Effusion"], CLASSES, None),
        (["Mass", ""], CLASSES, None),
        ([], CLASSES, None),
    ],
)
def test_what_joins_the_labels_of_a_sample(cells, classes, joint):
    assert joint_of(cells, classes) == joint


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("Mass|Effusion", "Effusion|Mass"),
        ('"Mass, Effusion"', '"Effusion, Mass"'),
        ("Mass/No Finding", "Effusion/Mass"),
        ("Mass;Effusion", '"Effusion;Mass"'),
        ("Mass", '"Effusion;Mass"'),
    ],
)
def test_a_submission_joins_labels_as_its_sample_does(tmp_path, cell, written):
    sample = read_sample(text_file(tmp_path / "sample.csv", "ID,Label", *(f"{name},{cell}" for name in FILES)))
    found = Predictions(PROBABILITIES, CLASSES, MANY_LABELS, [0.5] * 3)
    summary, notes = write_submission(Outputs(tmp_path / "out.csv"), sample, found)
    lines = ["ID,Label", f"{FILES[0]},{written}", f"{FILES[1]},No Finding", f"{FILES[2]},"]
    assert (tmp_path / "out.csv").read_text() == "".join(f"{line}\n" for line in lines)
    assert "3 of 3 labels" in summary
    assert [note for note in notes if "joined" in note] == (
        [f"labels are joined by ';', since no cell of {sample.where} shows what joins them"] if cell == "Mass" else []
    )


def test_labels_joined_by_something_else_than_in_the_sample_are_a_mistake(tmp_path):
    sample = read_sample(text_file(tmp_path / "sample.csv", "ID,Label", *(f"{name},Mass|Effusion" for name in FILES)))
    mine = text_file(tmp_path / "mine.csv", "ID,Label", *(f"{name},Mass;Effusion" for name in FILES))
    (problem,) = validate(mine, sample, CLASSES, MANY_LABELS).problems
    assert problem.startswith("1 label is unknown: 'Mass;Effusion' (3 rows)")
    mine = text_file(tmp_path / "mine.csv", "ID,Label", *(f"{name},Effusion|Mass" for name in FILES))
    assert not validate(mine, sample, CLASSES, MANY_LABELS).problems
