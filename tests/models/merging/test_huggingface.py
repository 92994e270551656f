"""Models of Hugging Face's transformers, wrapped: their outputs keep their form, with and without merging."""

import subprocess
import sys
import warnings

import pytest
import torch

from models.explain import EXPLAINERS, explain
from models.merging import MERGERS, initial_tokens, wrap
from models.merging.layer import MergeLayer
from models.merging.wrapping import blocks_of, schedule_of, trace, unwrap
from models.merging.wrapping.families import kind_of
from models.settings import UserError
from tests.marks import mostly_slow
from tests.models.merging import wrapped_models
from tests.models.merging.wrapped_models import PATCHES, after_blocks, images
from tests.paths import ROOT

transformers = pytest.importorskip("transformers", minversion="5.24")

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
# class of the model, class of its settings, prefix tokens, more settings
MODELS = {
    "ViT": ("ViTForImageClassification", "ViTConfig", 1, {}),
    "DeiT": ("DeiTModel", "DeiTConfig", 2, {}),
    "DINOv2": ("Dinov2Model", "Dinov2Config", 1, {"layerscale_value": 0.5}),
    "DINOv2 with registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", 4, {"num_register_tokens": 3}),
    "DINOv3": ("DINOv3ViTModel", "DINOv3ViTConfig", 3, {"num_register_tokens": 2, "use_gated_mlp": True}),
    "CLIP": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", 1, {}),
    "SigLIP": ("SiglipVisionModel", "SiglipVisionConfig", 0, {}),
}
ALL = pytest.mark.parametrize("name", MODELS)


def built(name, **more):
    """A model without a zero anywhere, in evaluation mode."""
    model, config, _, options = MODELS[name]
    torch.manual_seed(0)
    built = getattr(transformers, model)(getattr(transformers, config)(**{**SMALL, **options, **more})).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return built


def equal(one, other):
    assert list(one) == list(other)
    for key, value in one.items():
        pairs = zip(value, other[key], strict=True) if isinstance(value, tuple) else [(value, other[key])]
        assert all(torch.equal(a, b) for a, b in pairs), key


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@ALL
def test_without_merging_every_output_is_the_models_own(name, attention):
    model = built(name, attn_implementation=attention)
    asked = {"output_hidden_states": True, "output_attentions": attention == "eager"}
    before, keys = model(images(), **asked), list(model.state_dict())
    assert wrap(model) is model
    equal(model(images(), **asked), before)
    assert list(model.state_dict()) == keys and len(before.hidden_states) == 4
    wrap(model, r=4)
    assert not torch.allclose(model(images())[0], before[0], atol=1e-4)
    equal(unwrap(model)(images(), **asked), before)


@ALL
def test_outputs_have_a_row_for_each_patch(name):
    model, prefix = wrap(built(name), r=[0, 5, 3]), MODELS[name][2]
    output, tokens = trace(model, images())
    assert schedule_of(model) == [0, 5, 3]
    assert tokens.size.shape == (2, prefix + PATCHES - 8) and tokens.index.shape == (2, prefix + PATCHES)
    assert torch.equal(tokens.index[:, :prefix], torch.arange(prefix).expand(2, -1))
    result, states = after_blocks(lambda: model(images(), output_hidden_states=True))
    hidden = result.hidden_states
    assert [tuple(rows.shape) for rows in hidden] == [(2, prefix + PATCHES, 32)] * 4
    # After any block, a row is the token that its patch became part of; the last is normalised in some of the models.
    for number, ((x, tokens), removed) in enumerate(zip(states, (0, 5, 8), strict=True), 1):
        for image in range(2):
            gathered = torch.stack([x[image, token] for token in tokens.index[image].tolist()])
            assert number == 3 or torch.equal(hidden[number][image], gathered)
            assert len(hidden[number][image, prefix:].unique(dim=0)) == PATCHES - removed
            assert len(torch.cat([hidden[number][image], gathered], dim=1).unique(dim=0)) == prefix + PATCHES - removed
    if "last_hidden_state" in output:
        assert output.last_hidden_state.shape == (2, prefix + PATCHES, 32)


@pytest.mark.parametrize("mode", ["eval", "train"])
@ALL
def test_a_block_s_equations_are_the_block(name, mode):
    options = {"attention_dropout": 0.3} if name in ("CLIP", "SigLIP", "DINOv3") else {"hidden_dropout_prob": 0.3}
    model = built(name, **options).train(mode == "train")
    wrapped, prefix = blocks_of(wrap(model)), MODELS[name][2]
    layer = MergeLayer(MERGERS["tome"], "keys", prefix, 0.0, 32, 8)
    x, given = torch.randn(2, prefix + PATCHES, 32), {}
    if name == "DINOv3":
        given = {"position_embeddings": model.eval().rope_embeddings(images())}
        model.train(mode == "train")
    for i in range(3):
        torch.manual_seed(3)
        expected = wrapped[i](x, attention_mask=None, **given)
        torch.manual_seed(3)
        run = kind_of(wrapped[i], "block").run
        out, _ = run(wrapped[i], x, initial_tokens(x), 0, layer, None, own=False, **given)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", mostly_slow(MODELS, ["ViT", "DINOv3", "SigLIP"]))
def test_a_budget_is_met(name):
    model = wrap(built(name), target_ratio=1.3)
    assert sum(schedule_of(model)) > 0
    assert model(images())[0].isfinite().all()


@pytest.mark.parametrize("method", MERGERS)
def test_every_method_goes_through(method):
    model = wrap(built("DeiT"), method=method, r=5)
    output, tokens = trace(model, images())
    assert tokens.size.shape[1] == 2 + PATCHES - sum(schedule_of(model))
    assert output.last_hidden_state.isfinite().all() and output.pooler_output.shape == (2, 32)


def test_it_trains_saves_and_loads(tmp_path):
    model = wrap(built("ViT"), "dtem", r=4).train()
    model(pixel_values=images(), labels=torch.tensor([0, 1])).loss.backward()
    gradients = [p.grad for name, p in model.named_parameters() if "merging" not in name]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    model = wrap(model, "tome", r=4).eval()
    model.save_pretrained(tmp_path)
    loaded = transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(wrap(loaded, "tome", r=4)(images()).logits, model(images()).logits)


def test_a_whole_clip_merges_in_its_image_tower():
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.CLIPConfig(text_config=text, vision_config=SMALL, projection_dim=16)
    model = transformers.CLIPModel(config).eval()
    words = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    before = model(pixel_values=images(), **words)
    wrap(model, r=0)
    assert torch.equal(model(pixel_values=images(), **words).logits_per_image, before.logits_per_image)
    wrap(model, r=5)
    after = model(pixel_values=images(), **words)
    assert torch.equal(after.text_embeds, before.text_embeds)
    assert not torch.equal(after.image_embeds, before.image_embeds)


def test_what_merged_tokens_cannot_give_is_said():
    model = wrap(built("ViT", attn_implementation="eager"), r=4)
    with pytest.raises(UserError, match="output_attentions: does not follow merged tokens; omit it"):
        model(images(), output_attentions=True)
    with pytest.raises(UserError, match="attention_mask: does not follow merged tokens"):
        model(images(), attention_mask=torch.tensor([[1] * 16 + [0]] * 2))
    with pytest.raises(UserError, match="returns a BaseModelOutputWithPooling; give one that returns logits"):
        explain(wrap(built("DINOv2"), r=4), images(), "rollout")
    model.config.output_attentions = True
    with pytest.raises(UserError, match="output_attentions: does not follow merged tokens; set it to False"):
        model(images())
    with pytest.raises(UserError, match="holds 2 vision towers that merge; wrap one of them"):
        wrap(Both(transformers.ViTConfig(**SMALL)), r=1)


class Logits(torch.nn.Module):
    """A classifier of transformers that returns nothing but its logits."""

    def __init__(self, model):
        super().__init__()
        self.model, self.head_names = model, ("model.classifier",)

    def forward(self, images):
        return self.model(images).logits


@pytest.mark.parametrize("r", [0, 4])
@pytest.mark.parametrize("method", EXPLAINERS)
def test_a_classifier_is_explained_as_one_that_returns_logits_alone(method, r):
    model = wrap(built("ViT"), r=r)
    options = {"samples": 30} if method in ("lime", "rise") else {}
    found, same = explain(model, images(), method, **options), Logits(model)
    expected = explain(same, images(), method, **options)
    torch.testing.assert_close(found.relevance, expected.relevance)
    assert found.relevance.abs().sum() > 0 and torch.equal(found.logits, model(images()).logits)
    assert "logits" in model(images()), "the output has its form again"


class Both(transformers.PreTrainedModel):
    """A model with two vision towers."""

    def __init__(self, config):
        super().__init__(config)
        self.one, self.other = transformers.ViTModel(config), transformers.ViTModel(config)
        self.post_init()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("r", [0, 4])
def test_gradient_checkpointing_gives_the_same_gradients(r, reentrant):
    gradients = []
    for checkpointed in (False, True):
        model = wrap(built("ViT"), r=r).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        try:
            model(images(), labels=torch.tensor([0, 1])).loss.backward()
        except UserError as error:
            assert reentrant and r and "use_reentrant=True would lose" in str(error)
            return
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_trainer_trains(checkpointed, tmp_path):
    pytest.importorskip("accelerate")
    model = wrap(built("ViT"), r=3)
    before = model.vit.layers[0].mlp.fc1.weight.clone()
    images_of = [{"pixel_values": image, "labels": i % 2} for i, image in enumerate(images(8))]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        gradient_checkpointing=checkpointed,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=images_of, eval_dataset=images_of)
    assert trainer.train().training_loss > 0 and trainer.evaluate()["eval_loss"] > 0
    assert not torch.equal(model.vit.layers[0].mlp.fc1.weight, before)


@pytest.mark.parametrize("name", ["Dinov2", "DINOv3ViT"])
def test_backbones_give_maps_of_all_patches(name):
    config = getattr(transformers, f"{name}Config")(**SMALL, out_features=["stage2", "stage3"])
    model = getattr(transformers, f"{name}Backbone")(config).eval()
    before = model(images()).feature_maps
    assert all(torch.equal(a, b) for a, b in zip(wrap(model)(images()).feature_maps, before, strict=True))
    merged = wrap(model, r=5)(images()).feature_maps
    assert [tuple(x.shape) for x in merged] == [tuple(x.shape) for x in before] == [(2, 32, 4, 4)] * 2
    assert not torch.equal(merged[1], before[1])


def test_patches_and_images_that_are_not_square():
    config = transformers.ViTConfig(**{**SMALL, "image_size": [32, 64], "patch_size": (8, 16)})
    model = wrap(transformers.ViTModel(config).eval(), "grid", r=4)
    _, tokens = trace(model, torch.randn(1, 3, 32, 64))
    assert tokens.input_grid == (4, 4)


def test_a_budget_for_images_of_another_size_warns_once():
    model = wrap(built("DINOv2"), target_ratio=1.3)
    with pytest.warns(UserWarning, match="solved for 16 patches, and these images have 36.*or give merge.keep"):
        model(images(size=48))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(images(size=48))
        wrap(built("DINOv2"), keep={"rate": 0.7, "blocks": [2]})(images(size=48))


def test_models_of_any_size_have_no_grid():
    with pytest.raises(UserError, match="takes images of any size"):
        wrap(built("DINOv2"), "grid", r=4)
    model = wrap(built("DINOv2"), r=4)
    assert model(images(size=48)).last_hidden_state.shape == (2, 37, 32)


def test_a_model_of_timm_is_wrapped_where_transformers_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert schedule_of(wrap(wrapped_models.built("deit"), r=4)) == [4, 4, 4]


@pytest.mark.slow
def test_transformers_is_imported_for_its_own_models_alone():
    code = (
        "import sys, timm; from models.merging import wrap; wrap(timm.create_model('vit_tiny_patch16_224'), r=4); "
        "print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
