"""Curves of runs."""

from engine.study.curves import curves
from tests.engine.study.run_folders import write_run


def test_captions_say_augmented_of_runs_that_augment(tmp_path):
    plain = write_run(tmp_path, "plain", 0, 0.9, "augment={crop: 0, scale: 0.0, flip: false, erase: 0.0}")
    augmented = write_run(tmp_path, "augmented", 0, 0.9, "augment.flip=true")
    assert "augmented" not in curves([plain]).get_suptitle()
    assert "augmented" in curves([plain, augmented]).get_suptitle()
