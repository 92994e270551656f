import hashlib

import pytest
import torch

from engine.data import DATASETS, SplitSettings, build_data
from engine.data.sources.digits import DigitsSettings, load_digits
from models.settings import UserError, check


def test_the_set_is_whole_and_scaled():
    raw = load_digits(DigitsSettings())
    assert raw.train.images.shape == (1437, 1, 8, 8) and raw.test.images.shape == (360, 1, 8, 8)
    assert raw.classes == list("0123456789")
    images = torch.cat([raw.train.images, raw.test.images])
    assert images.min() == 0 and images.max() == 255 and len(images.unique()) == 17
    counts = torch.bincount(raw.test.labels)
    assert counts.min() >= 35 and counts.max() <= 37


def test_the_test_set_never_changes():
    test = load_digits(DigitsSettings()).test
    digest = hashlib.sha256(test.images.numpy().tobytes() + test.labels.numpy().tobytes()).hexdigest()
    assert digest[:16] == "99ac20baf448e93e"


def test_the_seed_moves_the_validation_split_alone():
    first, other = (build_data(DATASETS["digits"][0](), SplitSettings(val=0.2), seed) for seed in (0, 1))
    assert first.test.images.equal(other.test.images) and not first.val.images.equal(other.val.images)
    assert len(first.train) + len(first.val) == 1437
    assert 0.25 < first.mean[0] < 0.35 and 0.3 < first.std[0] < 0.4


def test_it_has_no_options():
    with pytest.raises(UserError, match="data.root: unknown key"):
        check(DigitsSettings, {"name": "digits", "root": "data"}, "data")
