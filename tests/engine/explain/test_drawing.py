"""Heat maps over photographs: exact colours, and what is said in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.explain.drawing import Heat, Row, contact_sheet, figure_of, nothing_shown, overlay

GREY = torch.full((3, 4, 4), 100, dtype=torch.uint8)
MAP = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
SIGNED = torch.tensor([[0.0, 4.0], [-4.0, -2.0]])
LOW, HIGH = [40, 40, 42], [191, 193, 139]  # 0.6 x the ends of inferno + 0.4 x 100
FOR, AGAINST, NEUTRAL = [102, 40, 59], [43, 69, 98], [188, 188, 188]  # the same for RdBu, reversed
NAMES = ["a very long name of a class, in so many words that it is cut", "$b$", "c", "d", "e", "f", "g"]
PROBABILITIES = torch.tensor([0.31, 0.2, 0.05, 0.3, 0.02, 0.1, 0.02001])


def test_colours_of_a_map_without_signs():
    drawn = overlay(GREY, MAP)
    assert drawn.shape == (4, 4, 3) and drawn.dtype == torch.uint8
    assert drawn[0, 0].tolist() == drawn[1, 1].tolist() == LOW
    assert drawn[2, 2].tolist() == drawn[3, 3].tolist() == HIGH
    assert drawn[0, 2].tolist() not in (LOW, HIGH)
    assert torch.equal(drawn, overlay(GREY, 2**-30 * MAP.double() + 2**-28))  # by its own minimum and maximum
    assert overlay(GREY, -MAP)[3, 3].tolist() == LOW


def test_colours_of_a_map_with_signs():
    drawn = overlay(GREY, SIGNED, signed=True)
    assert drawn[0, 0].tolist() == NEUTRAL
    assert drawn[0, 3].tolist() == FOR and drawn[3, 0].tolist() == AGAINST
    one_side = overlay(GREY, SIGNED.clamp(min=0), signed=True)  # zero stays neutral where nothing is negative
    assert one_side[0, 0].tolist() == one_side[3, 3].tolist() == NEUTRAL and one_side[0, 3].tolist() == FOR


def test_the_photograph_is_grey_below_the_colours():
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    image[0, 0], image[1, 1] = 255, 255
    assert overlay(image, torch.zeros(1, 1))[:, 0].tolist() == [[76] * 3, [150] * 3]  # red and green by their luminance
    assert overlay(image, torch.zeros(1, 1), signed=True)[0, 0].tolist() == [round(0.4 * 76.245 + 148.2)] * 3


def test_a_grey_image_is_drawn_as_the_same_in_colour():
    assert torch.equal(overlay(GREY[:1], MAP), overlay(GREY, MAP))
    for drawn in (figure_of(GREY[:1], Heat("m", MAP), PROBABILITIES, NAMES).axes[i].images[0] for i in (0, 1)):
        assert drawn.get_array().shape == (4, 4, 3)
    assert contact_sheet([Row("a", GREY[:1], [Heat("m", MAP)])]).axes[0].images[0].get_cmap().name == "gray"


def test_resizing():
    column = torch.tensor([[0.0], [1.0]])
    assert torch.equal(overlay(GREY, column), overlay(GREY, torch.tensor([[0.0], [0.0], [1.0], [1.0]])))
    assert torch.equal(overlay(GREY, column, smooth=True), overlay(GREY, torch.tensor([[0.0], [0.25], [0.75], [1.0]])))
    tall = torch.full((3, 9, 5), 100, dtype=torch.uint8)
    assert overlay(tall, MAP).shape == overlay(tall, torch.rand(9, 5), smooth=True).shape == (9, 5, 3)


@pytest.mark.parametrize(
    ("relevance", "words"),
    [
        (torch.zeros(3, 3), "no relevance anywhere"),
        (0.3 + 1e-7 * torch.rand(3, 3), "the same relevance everywhere"),
        (torch.tensor([[1.0, torch.nan]]), "not drawn: some values are nan or infinite"),
        (torch.tensor([[1.0, -torch.inf]]), "not drawn: some values are nan or infinite"),
    ],
)
def test_maps_that_show_nothing_say_so(relevance, words):
    assert nothing_shown(relevance) == words
    assert (overlay(GREY, relevance) == 100).all()  # no noise
    figure = figure_of(GREY, Heat("gradcam", relevance), PROBABILITIES, NAMES)
    assert figure.axes[1].get_xlabel() == words
    texts = [text.get_text() for text in contact_sheet([Row("a", GREY, [Heat("m", relevance)])]).axes[0].texts]
    assert words.split(":")[0] in " ".join(texts)


def test_small_differences_count_where_they_are_more_than_rounding():
    assert nothing_shown(0.3 + 1e-4 * torch.rand(3, 3)) == "" and nothing_shown(1e-30 * MAP) == ""
    zero, one = (overlay(GREY, torch.full((2, 2), value), signed=True).unique(dim=0) for value in (0.0, 0.1))
    assert zero[0, 0].tolist() == NEUTRAL and one[0, 0].tolist() == FOR


def test_the_figure_of_one_image():
    figure = figure_of(GREY, Heat("gradcam: $b$", MAP, note="R^2 0.83"), PROBABILITIES, NAMES, 3, ["a credit"])
    photograph, explanation, answer = figure.axes
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["photograph", "gradcam: $b$", "most likely of 7 classes"]
    np.testing.assert_array_equal(photograph.images[0].get_array(), GREY.permute(1, 2, 0))
    np.testing.assert_array_equal(explanation.images[0].get_array(), overlay(GREY, MAP))
    assert explanation.get_xlabel() == "the brighter, the more relevant"
    assert [bar.get_width() for bar in answer.patches] == pytest.approx([0.31, 0.3, 0.2, 0.1, 0.05])
    texts = [text.get_text() for text in answer.texts]
    assert texts[0].startswith("a very long name") and texts[0].endswith("…")
    assert texts[1:] == ["31.0 %", "d", "30.0 %", "$b$", "20.0 %", "f", "10.0 %", "c", "5.0 %"]
    assert [text.get_weight() for text in answer.texts[::2]] == ["normal", "bold", "normal", "normal", "normal"]
    assert figure.get_supxlabel() == "R^2 0.83\na credit"


def test_signs_are_explained_and_two_classes_are_enough():
    figure = figure_of(GREY, Heat("lime", SIGNED, signed=True), torch.tensor([0.25, 0.75]), ["no", "yes"], smooth=True)
    assert figure.axes[1].get_xlabel() == "red: for the class, blue: against it" and figure.get_supxlabel() == ""
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), overlay(GREY, SIGNED, signed=True, smooth=True))
    assert [text.get_text() for text in figure.axes[2].texts] == ["yes", "75.0 %", "no", "25.0 %"]


def test_no_texts_of_a_figure_meet():
    names = ["W" + 80 * "m"] + ["bow tie, bow-tie, bowtie and all the other names of it"] * 6
    heat = Heat("gradient_rollout: " + names[1] * 2, torch.zeros(2, 2), note="note " * 60)
    figure = figure_of(GREY, heat, PROBABILITIES, names, 3, ["a credit"])
    figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in (axes.title, axes.xaxis.label, *axes.texts)]
    boxes = [text.get_window_extent() for text in (*texts[2:], *texts[:2], *figure.texts) if text.get_text()]
    boxes += [axes.get_window_extent() for axes in figure.axes[:2]]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i]), i
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1


def test_a_contact_sheet_has_a_row_for_each_image_and_a_column_for_each_method():
    wide = torch.full((3, 4, 8), 50, dtype=torch.uint8)
    rows = [
        Row("one: cat 80 %", GREY, [Heat("gradcam", MAP), Heat("lime", SIGNED, True, "R^2 0.83")]),
        Row("two: $b$", wide, [Heat("gradcam", torch.zeros(2, 2)), Heat("lime", SIGNED, True, "R^2 0.5")]),
    ]
    (axes,) = contact_sheet(rows, "a credit").axes
    texts = {text.get_text(): text.get_position() for text in axes.texts if text.get_text()}
    assert list(texts) == [
        *("photograph", "gradcam", "lime", "one: cat 80 %", "R^2 0.83", "two: $b$"),
        *("no relevance anywhere", "R^2 0.5", "a credit"),
    ]
    assert texts["lime"][0] == texts["R^2 0.83"][0] == texts["R^2 0.5"][0]  # one column
    assert texts["lime"][1] < texts["R^2 0.83"][1] < texts["R^2 0.5"][1] < texts["a credit"][1]
    drawn = [picture.get_array() for picture in axes.images]
    assert len(drawn) == 6
    np.testing.assert_array_equal(drawn[1], overlay(GREY, MAP))
    np.testing.assert_array_equal(drawn[5], overlay(wide, SIGNED, signed=True))


def test_texts_of_a_contact_sheet_keep_clear_of_each_other():
    heats = [Heat("a method whose name is much too long for its column", MAP, note="word " * 20), Heat("b", MAP)]
    figure = contact_sheet([Row("label " * 20, GREY, heats), Row("x" * 60, GREY, heats)], "credit " * 40)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    boxes += [picture.get_window_extent() for picture in figure.axes[0].images]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i]), i
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1
