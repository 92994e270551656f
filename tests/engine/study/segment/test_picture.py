"""The picture of a comparison: the masks that rows keep, their colours, and what is drawn."""

import torch
from PIL import Image

from engine.data.masks import IGNORED, Masked, MaskedImages
from engine.measure.segmentation import pixel_counts
from engine.study.segment.evaluate import evaluate_rows
from engine.study.segment.picture import ROWS, colours, draw_masks
from engine.study.segment.report import compared, write_outputs
from engine.study.segment.rows import SHOWN, SegmentRow, encoded


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
    assert len(drawn) == 2 * (2 + ROWS) and "from before" not in " ".join(texts)
    palette = colours(4)
    assert (drawn[1].get_array()[0, 0] == palette[0]).all() and (drawn[1].get_array()[7, 0] == palette[2]).all()
    assert (drawn[-1].get_array()[0, 0] == 255).all()
    assert [text for text in texts if text.startswith("\N{BLACK SQUARE}")] == [
        "\N{BLACK SQUARE} sky",
        "\N{BLACK SQUARE} a car with a very ...",
    ]
    for classes in (10, 20, 40, 255):
        assert len({tuple(colour) for colour in colours(classes)[:classes].tolist()}) >= min(classes, 150)
