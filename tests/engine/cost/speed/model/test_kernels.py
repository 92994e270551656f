"""The implementation of attention that a row names is the one that ran."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from engine.cost.speed.model.kernels import AUTO, choosing, kernels_of, seen_in
from models.builders import build_model

CPU = torch.device("cpu")
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
OURS = {"name": "vit", "img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


@torch.no_grad()
def seen(model):
    return seen_in(model, IMAGES)


@pytest.mark.parametrize("name", [AUTO, *kernels_of(CPU)])
@pytest.mark.parametrize("merge", [{"r": 0}, {"r": 3}])
def test_the_chosen_implementation_runs(name, merge):
    model = build_model(**OURS, merge=merge).eval()
    with choosing(name, CPU):
        assert seen(model) == ("fused" if name == AUTO else name)


def test_models_without_attention():
    assert seen(build_model("lenet5", in_chans=3).eval()) == "-"


@pytest.mark.parametrize(("name", "wanted"), [(AUTO, "native"), ("fused", "fused"), ("math", "math")])
def test_a_choice_has_an_effect_on_multihead_attention_of_torch(name, wanted):
    """It has a kernel of its own in evaluation mode, which asks for no implementation."""
    model = VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16).eval()
    before = torch.backends.mha.get_fastpath_enabled()
    with choosing(name, CPU):
        assert seen(model) == wanted
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_several_implementations_are_all_named():
    class Model(torch.nn.Module):
        def forward(self, images):
            F.scaled_dot_product_attention(images, images, images)
            with choosing("math", CPU):
                return F.scaled_dot_product_attention(images, images, images)

    assert seen(Model()) == "fused+math"
