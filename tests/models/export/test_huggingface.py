"""Classifiers of Hugging Face's transformers leave the framework with their merging."""

from __future__ import annotations

import pytest
import torch

from models import export
from models.export import close, export_model, load, without_masks
from models.merging import wrap
from models.settings import UserError
from tests.models.export.test_export import photographs
from tests.models.merging.test_huggingface import MODELS, SMALL, built

transformers = pytest.importorskip("transformers", minversion="5.24")
pytestmark = pytest.mark.skipif(torch.__version__ < export.LEAST_TORCH, reason=f"needs torch {export.LEAST_TORCH}")


def classifier(name: str):
    """A model of which logits depend on what merges."""
    _, settings, _, options = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, settings)(**{**SMALL, "num_hidden_layers": 2, **options, "num_labels": 5})
    model = getattr(transformers, settings.replace("Config", "ForImageClassification"))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return wrap(model, "tome", r=[4, 0])


@pytest.mark.parametrize(("name", "to"), [("ViT", "onnx"), pytest.param("DINOv2", "exported", marks=pytest.mark.slow)])
def test_a_classifier(name, to, tmp_path):
    model, path = classifier(name), tmp_path / f"model{export.FORMATS[to].suffixes[0]}"
    attention = model.config._attn_implementation
    found = export_model(model, to, path, photographs(8), batch_sizes=(1, 8))
    assert (found.same_prediction, found.ties) == (8, 0) and found.difference <= 1e-4
    expected = model(photographs(3)).logits.detach()
    assert close(load(path)[0](photographs(3)), expected).all()
    assert not close(wrap(model, r=0)(photographs(3)).logits.detach(), expected).any()
    assert model.config._attn_implementation == attention, "the model is left as it was"


def test_a_program_of_a_model_without_classes():
    """torch.export itself takes it once it makes no masks; until then a mask does not follow merged tokens."""
    model = wrap(built("DeiT"), r=4)
    with pytest.raises(UserError, match="attention_mask: does not follow merged tokens"):
        torch.export.export(model, (photographs(2),), strict=False)
    program = torch.export.export(without_masks(model), (photographs(2),), strict=False)
    torch.testing.assert_close(program.module()(photographs(2)), model(photographs(2)), atol=1e-5, rtol=1e-5)


def test_a_model_without_classes_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"gives a BaseModelOutput\w* for 1 image\(s\), not one row of logits"):
        export_model(wrap(built("DINOv2"), r=4), "exported", tmp_path / "m.pt2", photographs(2))
