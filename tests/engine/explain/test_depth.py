"""What each block of a model merges, as a figure and as an animation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from engine.data import FileSettings
from engine.explain.depth import FRAME, LAST, LINES, animation, strip, trace
from engine.figures.merge_picture import read_photographs
from engine.figures.merge_tracing import Merged
from models import build_model
from models.interface import trace_tokens
from models.merging import unwrap, wrap
from models.settings import UserError
from tests.models.merging.wrapped_models import built, images

PATCH = 8
ALONE = torch.arange(16).view(4, 4)
HALVES = torch.tensor([[0, 0, 1, 1]]).expand(4, 4)
QUADRANTS = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])
DEPTH = [
    Merged("block 1", ALONE, 16),
    Merged("block 2", QUADRANTS, 4),
    Merged("block 3", QUADRANTS, 4),
    Merged("block 4", HALVES, 2),
]


@pytest.fixture(scope="module")
def image():
    """4 x 4 patches of one colour each; the means of quadrants and halves are whole numbers."""
    colours = 4 * torch.randint(10, 50, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    colours[:, 0, 0] += -colours[:, :2, :2].sum((1, 2)) % 8
    return colours.byte().repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)


def mean(image, rows, columns):
    """The colour of a region, of rows and columns of patches."""
    part = image[:, rows[0] * PATCH : rows[1] * PATCH, columns[0] * PATCH : columns[1] * PATCH]
    return part.float().mean((1, 2)).numpy()


def read(path):
    with Image.open(path) as file:
        frames = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(file)]
        return file.info.get("loop"), frames


def test_each_block_has_the_token_of_each_patch():
    model = wrap(built(), r=[0, 5, 3])
    one, two, three = trace(model, images()[0])
    assert [one.title, two.title, three.title] == ["block 1", "block 2", "block 3"]
    assert [one.tokens, two.tokens, three.tokens] == [16, 11, 8]
    assert torch.equal(one.index, ALONE)
    tokens, _ = trace_tokens(model, images()[:1])
    assert torch.equal(three.index.flatten(), tokens.index[0, 1:] - 1)
    tokens, _ = trace_tokens(wrap(model, r=[0, 5, 0]), images()[:1])
    assert torch.equal(two.index.flatten(), tokens.index[0, 1:] - 1)


@pytest.mark.parametrize("name", ["vit", "hybrid"])
def test_our_own_models_in_training_mode(name):
    """Several prefix tokens or none, and a mode that is kept."""
    size = {"img_size": 16, "patch_size": 4, "num_classes": 3, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = build_model(name, **size, merge={"method": "tome", "r": 3}).train()
    steps = trace(model, images(size=16)[0])
    assert [step.tokens for step in steps] == [13, 10] and model.training
    for step in steps:
        assert step.index.shape == (4, 4) and sorted(step.index.unique().tolist()) == list(range(step.tokens))


def test_a_model_that_merges_nothing_says_so_in_one_line():
    model = built()
    for merge_nothing in (unwrap, wrap):
        with pytest.raises(UserError, match="^the model merges no tokens in any block; turn merging on with") as error:
            trace(merge_nothing(wrap(model)), images()[0])
        assert "\n" not in str(error.value)


def test_the_strip_shows_the_blocks_that_merge_in_mean_colours(image):
    figure = strip(image, DEPTH, ["a credit"])
    photograph, two, four = figure.axes
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["photograph: 16 patches", "block 2: 4 tokens", "block 4: 2 tokens"]
    np.testing.assert_array_equal(photograph.images[0].get_array(), image.permute(1, 2, 0))
    drawn = two.images[0].get_array()
    assert drawn.shape == (4, 4, 3)
    np.testing.assert_allclose(255 * drawn[1, 2], mean(image, (0, 2), (2, 4)), atol=1e-3)
    np.testing.assert_allclose(255 * four.images[0].get_array()[3, 0], mean(image, (0, 4), (0, 2)), atol=1e-3)
    lines = {tuple(map(tuple, line.astype(int).tolist())) for line in four.collections[-1].get_segments()}
    assert lines == {((2, y), (2, y + 1)) for y in range(4)}
    text = figure.get_supxlabel()
    assert "Blocks 1, 3 merge nothing." in text.replace("\n", " ") and text.endswith("\na credit")


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ([9, 8, 7], None),
        ([16, 8, 7], "Block 1 merges nothing."),
        ([16, 16, 16, 8, 8, 7], "Blocks 1 to 3, 5 merge nothing."),
    ],
)
def test_the_caption_names_the_blocks_that_merge_nothing(image, tokens, sentence):
    text = strip(image, [Merged(f"block {i}", ALONE, count) for i, count in enumerate(tokens, 1)]).get_supxlabel()
    text = text.replace("\n", " ")
    assert text.endswith(sentence) if sentence else "nothing" not in text


def test_many_blocks_take_several_rows_and_no_texts_meet(image):
    figure = strip(image, [Merged(f"block {i}", ALONE, 16 - i) for i in range(1, 13)])
    figure.draw_without_rendering()
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == 13 and len(figure.axes) == 14
    assert len({round(axes.get_position().y0, 3) for axes in drawn}) == 2
    titles = [axes.title.get_window_extent() for axes in drawn]
    pictures = [axes.get_window_extent() for axes in drawn]
    for i, title in enumerate(titles):
        assert not any(title.overlaps(other) for other in titles[:i] + pictures)


def test_the_animation_has_a_frame_for_each_block(image, tmp_path):
    animation(image, DEPTH, tmp_path / "depth.gif")
    loop, frames = read(tmp_path / "depth.gif")
    assert loop == 0
    assert [duration for _, duration in frames] == [FRAME] * 4 + [LAST] and LAST > FRAME == 600
    scale = 448 // 32
    for pixels, _ in frames:
        assert pixels.shape[1] == 448 and 448 < pixels.shape[0] < 490
        band = pixels[:-448]
        assert (band == band[..., :1]).all() and band.min() == 0 and band.max() == 255  # black on white
    photograph, _, two, _, four = (pixels[-448:].astype(int) for pixels, _ in frames)
    np.testing.assert_array_equal(photograph[scale // 2 :: scale, scale // 2 :: scale], image.permute(1, 2, 0))
    for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
        region = two[224 * y + 3 : 224 * y + 221, 224 * x + 3 : 224 * x + 221]
        expected = mean(image, (2 * y, 2 * y + 2), (2 * x, 2 * x + 2)).round()
        np.testing.assert_array_equal(region.reshape(-1, 3), np.broadcast_to(expected, (218 * 218, 3)))
    for x, colour in zip((223, 224), LINES):  # on both sides of the border
        np.testing.assert_array_equal(four[:, x], np.broadcast_to(colour, (448, 3)))
        assert (two[x, 300] == colour).all() and (four[x, 300] != colour).any()


def test_frames_of_blocks_without_merging_differ_in_their_text_alone(image, tmp_path):
    animation(image, DEPTH, tmp_path / "depth.gif", scale=8)
    (_, _), _, (two, _), (three, _), _ = read(tmp_path / "depth.gif")[1]
    assert two.shape[1] == 8 * 32
    np.testing.assert_array_equal(two[-256:], three[-256:])
    assert (two[:-256] != three[:-256]).any()


def test_an_animation_of_a_photograph_is_small(tmp_path):
    image = read_photographs(["grace_hopper"], FileSettings(size=224))[0]
    numbers = torch.arange(196).view(14, 14)
    animation(image, [Merged(f"block {i}", numbers // i, 196 // i) for i in range(2, 14)], tmp_path / "depth.gif")
    assert (tmp_path / "depth.gif").stat().st_size < 300_000


def test_grey_images_are_drawn_grey(image, tmp_path):
    animation(image[:1], DEPTH, tmp_path / "depth.gif")
    for pixels, _ in read(tmp_path / "depth.gif")[1]:
        assert (pixels == pixels[..., :1]).all()
    for axes in strip(image[:1], DEPTH).axes:
        drawn = np.asarray(axes.images[0].get_array())
        assert drawn.shape[2] == 3 and (drawn == drawn[..., :1]).all()


def test_a_file_that_cannot_be_written(image, tmp_path):
    with pytest.raises(UserError, match="depth.gif: cannot be written"):
        animation(image, DEPTH, tmp_path / "no" / "depth.gif")
