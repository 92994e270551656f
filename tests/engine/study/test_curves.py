"""Curves of runs."""

import pytest

from engine.runs.folder import RunFolder
from engine.study.curves import INSIDE, OVER, curves
from models.settings import UserError
from tests.engine.study.run_folders import write_run


def test_captions_say_augmented_of_runs_that_augment(tmp_path):
    plain = write_run(tmp_path, "plain", 0, 0.9, "augment={crop: 0, scale: 0.0, flip: false, erase: 0.0}")
    augmented = write_run(tmp_path, "augmented", 0, 0.9, "augment.flip=true")
    assert "augmented" not in curves([plain]).get_suptitle()
    assert "augmented" in curves([plain, augmented]).get_suptitle()


def legend_of(figure):
    """The names in the legend, inside the axes or beside them."""
    (legend,) = [*figure.legends, *filter(None, [figure.axes[1].get_legend()])]
    return [text.get_text() for text in legend.get_texts()]


def test_seeds_have_one_name_and_one_colour_and_thin_lines(tmp_path):
    seeds = [write_run(tmp_path, f"vit_s{seed}", seed, 0.9) for seed in (0, 1)]
    other = write_run(tmp_path, "_deep", 0, 0.9, "model.depth=6")
    figure = curves([seeds[0], other, seeds[1]])
    assert legend_of(figure) == ["vit", " _deep"]
    for axes in figure.axes:
        solid = [line for line in axes.lines if line.get_linestyle() == "-"]
        assert len(solid) == 3 and len({line.get_color() for line in solid[:2]}) == 1
        assert solid[0].get_linewidth() == solid[1].get_linewidth() < solid[2].get_linewidth()
        assert solid[2].get_color() != solid[0].get_color()
    many = [write_run(tmp_path, f"r{depth}", 0, 0.9, f"model.depth={depth}") for depth in range(1, INSIDE + 2)]
    assert legend_of(curves(many)) == [run.name for run in many]


def test_a_long_legend_is_within_the_figure(tmp_path):
    figure = curves([write_run(tmp_path, f"run{i}", 0, 0.9, f"model.depth={i + 1}") for i in range(40)])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.x0 > figure.axes[1].bbox.x1


def test_folds_have_the_name_of_their_run(tmp_path):
    folds = [write_run(tmp_path, f"fold{k}", 0, 0.9, "split.folds=3", f"split.fold={k}", "name=vit") for k in (0, 1)]
    assert legend_of(curves(folds)) == ["vit"]


def test_curves_by_epoch_and_by_seconds(tmp_path):
    run = write_run(tmp_path, "run", 0, 0.9)
    results = RunFolder(run).read_results()
    RunFolder(run).write_results(results.model_copy(update={"steps": 4, "epochs": 2, "seconds": 30.0}))
    for over, places in (("step", [2, 4]), ("epoch", [1, 2]), ("seconds", [15, 30])):
        figure = curves([run], over)
        for axes in figure.axes:
            assert axes.get_xlabel() == OVER[over]
            assert all(list(line.get_xdata()) == places for line in axes.lines)
    RunFolder(run).results_file.unlink()
    with pytest.raises(UserError, match="use --over step"):
        curves([run], "epoch")
