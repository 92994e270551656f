"""The picture of a comparison: the masks that rows keep, their colours, and what is drawn."""

import json

import pytest
import torch
from PIL import Image

from engine.data.masks import IGNORED, Masked, MaskedImages
from engine.measure.segmentation import pixel_counts
from engine.study.segment.evaluate import evaluate_rows
from engine.study.segment.picture import ROWS, colours, draw_masks
from engine.study.segment.report import compared, undrawn, write_outputs
from engine.study.segment.rows import SHOWN, SegmentRow, encoded
from models.settings import UserError


def test_rows_keep_the_masks_that_they_predict_for_the_first_images(load, tmp_path):
    settings = load("data.test=8", "batch_size=3")  # the first five are in two batches
    subject, rows = evaluate_rows(settings, tmp_path, lambda line: None)
    for row in rows:
        assert row.masks().shape == (SHOWN, 64, 64)
        counts = pixel_counts(row.masks().long(), subject.images.test.masks[:SHOWN], 4)
        assert (counts.numpy() == row.counts[:SHOWN]).all()
    write_outputs(tmp_path, settings, subject, compared(rows, {}))
    drawn = [text.get_text() for text in draw_masks(subject.images, rows).axes[0].texts]
    assert drawn[:2] == ["image", "mask"] and drawn[2].startswith("unmerged: ") and drawn[2].endswith(" %")
    width, height = Image.open(tmp_path / "masks.png").size
    assert 1.0 < height / width < 1.2  # five rows of five pictures, texts, and a line of classes


def row(name, masks):
    fields = {name: 0 for name, field in SegmentRow.model_fields.items() if field.is_required()}
    return SegmentRow.model_construct(**fields | {"name": name, "shown": masks, "pixels": [[[1, 1], [1, 1], [1, 1]]]})


def test_each_class_has_a_colour_and_names_of_those_there_are_written():
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[:, 4:] = 2
    masks[1, 0] = IGNORED
    part = Masked(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), masks, ("a", "b"))
    images = MaskedImages(part, part, ("sky", "road", "a car with a very long name", "tree"))
    many = [row(f"row {number}", encoded(masks)) for number in range(ROWS + 3)]
    many.insert(1, row("from before masks were kept", []))
    figure = draw_masks(images, many)
    drawn, texts = figure.axes[0].images, [text.get_text() for text in figure.axes[0].texts]
    assert len(drawn) == 2 * (2 + ROWS) + 2 and "from before" not in " ".join(texts)  # and two classes in the legend
    palette = colours([0, 2])
    assert len({tuple(palette[number]) for number in (0, 1, 2)}) == 3 and (palette[1] == 255).all()
    assert (drawn[1].get_array()[0, 0] == palette[0]).all() and (drawn[1].get_array()[7, 0] == palette[2]).all()
    assert (drawn[-3].get_array()[0, 0] == 255).all()
    assert [picture.get_array()[0, 0].tolist() for picture in drawn[-2:]] == palette[[0, 2]].tolist()
    assert [text for text in texts if text][-2:] == ["sky", "a car with a ver..."]
    for count in (10, 20, 40):
        numbers = range(100, 100 + count)
        assert len({tuple(colour) for colour in colours(numbers)[100 : 100 + count].tolist()}) == count


def test_a_damaged_mask_is_an_error_of_its_file(load, tmp_path):
    settings = load("methods=[]", "budgets=[]", "sizes=[32]", "data.train=2", "data.test=1")
    _, rows = evaluate_rows(settings, tmp_path, lambda line: None)
    assert undrawn(rows) == []
    file = next((tmp_path / "rows").iterdir())
    for damaged in ("abc", "aGVsbG8="):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"shown": [damaged]}))
        with pytest.raises(UserError, match=f"{file.name}: damaged .*shown.*delete it"):
            evaluate_rows(settings, tmp_path, lambda line: None)
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "shown"}))
    _, rows = evaluate_rows(settings, tmp_path, lambda line: None)
    assert undrawn(rows) == [
        "note: 1 row was evaluated before masks were kept, and not drawn; out=FOLDER evaluates anew"
    ]
