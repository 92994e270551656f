"""The objective: loss and right predictions of a batch, and that wrappers for several processes can hold it."""

from __future__ import annotations

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from engine.data import build_data
from engine.machine import pick_device
from engine.runs.checkpoints import checkpoint
from engine.runs.checkpoints.weights import built
from engine.runs.tracking import Tracker
from engine.tasks import MANY_LABELS, ONE_LABEL
from engine.train.build import build_trainer
from engine.train.experiment import prepare_run
from engine.train.loop.checkpoints import Progress
from engine.train.loop.objective import Objective
from models.finetune import Tuning
from models.settings.finetune import FinetuneSettings

FP32 = torch.autocast("cpu", enabled=False)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward_heads(self, x):
        return self.left(x), self.right(x)


def test_each_head_learns_and_their_sum_predicts():
    network, x, labels = TwoHeads(), torch.randn(6, 4), torch.arange(6) % 3
    loss, correct = Objective(network, ONE_LABEL, FP32, label_smoothing=0.1)(x, labels)
    left, right = network.forward_heads(x)
    losses = [F.cross_entropy(logits, labels, label_smoothing=0.1) for logits in (left, right)]
    torch.testing.assert_close(loss, sum(losses) / 2)
    assert correct == ((left + right).argmax(1) == labels).sum()


def test_many_labels_count_by_label():
    network, x = nn.Linear(4, 3), torch.randn(6, 4)
    labels = (torch.randn(6, 3) > 0).float()
    loss, correct = Objective(network, MANY_LABELS, FP32)(x, labels)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(network(x), labels))
    assert correct.item() == pytest.approx(((network(x) > 0) == (labels > 0)).float().mean(1).sum().item())


@pytest.fixture
def one_process(tmp_path):
    """A group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def trained(settings, folder, wrap) -> dict:
    folder.mkdir()
    data = build_data(settings.data, settings.split, settings.seed)
    prepared = prepare_run(settings, data, folder, pick_device("cpu"), None)
    with Tracker(folder) as tracker:
        trainer = build_trainer(prepared, Progress(), tracker, wrap=wrap)
        trainer.fit()
    return checkpoint.load(folder / "last.pt")["model"]


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"merge": {"method": "tome", "r": {"train": [0, 8]}}},
        {"merge": {"method": "dtem", "r": 3}},
        {"merge": {"method": "dynamicvit", "r": 3}},
    ],
)
def test_wrapped_for_several_processes_it_trains_to_the_same_weights(model, tiny, tmp_path, one_process):
    """Steps with accumulation, mixing, label smoothing and drawn budgets."""
    settings = tiny(model=model, train={"steps": 3, "epochs": 10}, split={"part": 0.1})
    plain = trained(settings, tmp_path / "plain", lambda objective: objective)
    wrapped = trained(settings, tmp_path / "wrapped", DistributedDataParallel)
    start = built(settings).state_dict()
    assert any(not torch.equal(start[name], value) for name, value in plain.items())
    assert all(torch.equal(value, wrapped[name]) for name, value in plain.items())


def test_it_is_wrapped_again_when_other_parameters_begin_to_learn(tiny, tmp_path, one_process):
    groups = [{"parts": ["head"], "lr": 0.003}, {"parts": ["vit.blocks.1"], "epoch": 1, "lr": 0.001}]
    settings = tiny(finetune={"mode": "gradual", "groups": groups}, train={"epochs": 3}, split={"part": 0.2})
    plain = trained(settings, tmp_path / "plain", lambda objective: objective)
    wraps = []

    def wrap(objective):
        wraps.append({name for name, p in objective.network.named_parameters() if p.requires_grad})
        return DistributedDataParallel(objective)

    wrapped = trained(settings, tmp_path / "wrapped", wrap)
    assert len(wraps) == 2 and wraps[0] < wraps[1]
    assert all(torch.equal(value, wrapped[name]) for name, value in plain.items())


def test_tuning_says_when_it_changes_what_learns(tiny):
    model = built(tiny())
    groups = [{"parts": ["head"], "lr": 0.003}, {"parts": ["vit.blocks.1"], "epoch": 2, "lr": 0.001}]
    tuning = Tuning(model, FinetuneSettings(mode="gradual", groups=groups), 0.003)
    assert [tuning.begin(epoch) for epoch in range(4)] == [False, False, True, False]
