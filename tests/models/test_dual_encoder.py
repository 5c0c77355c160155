"""DualEncoderModel: the formulas of freeze-align, its switches, and towers that are saved only when they lie nowhere else."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import gelu, layer_norm, linear, normalize
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vwlmm import DualEncoderConfig, DualEncoderModel
from vwlmm.objectives import FreezeAlign, FreezeAlignConfig

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def vision(**changes):
    return Dinov2Model(Dinov2Config(**SMALL, image_size=28, patch_size=14, **changes)).eval()


def text(**changes):
    return BertModel(
        BertConfig(**SMALL, intermediate_size=32, vocab_size=50, max_position_embeddings=16, **changes)
    ).eval()


@pytest.fixture
def folders(tmp_path):
    """A vision and a text tower, saved."""
    torch.manual_seed(5)
    vision().save_pretrained(tmp_path / "vision")
    text().save_pretrained(tmp_path / "text")
    return tmp_path / "vision", tmp_path / "text"


@pytest.fixture
def pair(folders):
    return DualEncoderModel.from_towers(*folders, embed_dim=12)


def batch(count=3):
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(count, 6, dtype=torch.long)
    mask[0, 4:] = 0
    return {
        "pixel_values": torch.randn(count, 3, 28, 28, generator=generator),
        "input_ids": torch.randint(1, 50, (count, 6), generator=generator),
        "attention_mask": mask,
    }


def token_projection(x, p):
    n = layer_norm(x, x.shape[-1:], p.norm.weight, p.norm.bias)
    hidden = gelu(linear(n, p.mlp[0].weight, p.mlp[0].bias))
    return linear(n, p.linear.weight, p.linear.bias) + linear(hidden, p.mlp[2].weight, p.mlp[2].bias)


def test_the_published_widths_have_11_553_793_trainable_parameters():
    config = DualEncoderConfig(
        vision_config=Dinov2Config(hidden_size=1024), text_config=BertConfig(hidden_size=1024), embed_dim=1024
    )
    model = DualEncoderModel(config, leave_out=("vision", "text"))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 11_553_793


def test_a_new_pair_learns_its_projectors_and_temperature_only(pair):
    frozen = {name for name, p in pair.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in pair.named_parameters() if "_tower." in name}


def test_embeddings_are_the_published_formulas(pair):
    given = batch()
    h = pair.vision_tower(given["pixel_values"]).last_hidden_state
    v = token_projection(h[:, 1:], pair.local_vision_projection).mean(1)
    v = v + token_projection(h[:, 0], pair.cls_vision_projection)
    g = pair.text_tower(given["input_ids"], given["attention_mask"]).last_hidden_state
    tokens = token_projection(g, pair.local_text_projection)
    t = torch.stack([row[: int(mask.sum())].mean(0) for row, mask in zip(tokens, given["attention_mask"], strict=True)])
    head = pair.text_projection
    p = linear(t, head.projection.weight, head.projection.bias)
    t = p + linear(gelu(p), head.fc.weight, head.fc.bias)
    t = layer_norm(t, t.shape[-1:], head.norm.weight, head.norm.bias)
    outputs = pair(**given)
    torch.testing.assert_close(outputs.image_embeds, normalize(v, dim=-1))
    torch.testing.assert_close(outputs.text_embeds, normalize(t, dim=-1))
    torch.testing.assert_close(
        outputs.logits_per_image, outputs.image_embeds @ outputs.text_embeds.T / pair.temperature.value
    )


def test_loss_and_gradients_equal_the_formulas(pair):
    given = batch()
    pair.train()
    for module in pair.modules():  # dropout is random, the formula is not
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    learned = {name: p for name, p in pair.named_parameters() if p.requires_grad}
    loss = pair(**given, objective=FreezeAlign()).loss
    found = torch.autograd.grad(loss, learned.values())
    scores = pair(**given).logits_per_image
    own = torch.arange(3)
    expected = (torch.nn.functional.cross_entropy(scores, own) + torch.nn.functional.cross_entropy(scores.T, own)) / 2
    torch.testing.assert_close(loss, expected)
    for name, one, other in zip(learned, found, torch.autograd.grad(expected, learned.values()), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_padding_does_not_change_a_text(pair):
    ids = torch.tensor([[3, 4, 5]])
    padded, mask = torch.tensor([[3, 4, 5, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
    torch.testing.assert_close(pair.encode_text(padded, mask), pair.encode_text(ids))


def test_embeddings_from_the_towers_features_are_the_embeddings(pair):
    given = batch()
    images = pair.encode_image(tokens=pair.vision_tokens(given["pixel_values"]))
    tokens = pair.text_tokens(given["input_ids"], given["attention_mask"])
    assert torch.equal(images, pair.encode_image(given["pixel_values"]))
    assert torch.equal(
        pair.encode_text(tokens=tokens, attention_mask=given["attention_mask"]),
        pair.encode_text(given["input_ids"], given["attention_mask"]),
    )


def test_features_are_named_as_in_transformers_and_have_their_length(pair):
    given = batch()
    image = pair.get_image_features(given["pixel_values"])
    words = pair.get_text_features(given["input_ids"], given["attention_mask"])
    torch.testing.assert_close(normalize(image.pooler_output, dim=-1), pair.encode_image(given["pixel_values"]))
    assert words.last_hidden_state.shape == (3, 6, 16)
    assert not torch.allclose(words.pooler_output.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize(
    "switches",
    [
        {"local_vision_projection": "identity"},
        {"cls_vision_projection": "identity"},
        {"local_vision_projection": "mlp", "cls_vision_projection": "linear"},
        {"local_text_projection": "identity"},
        {"text_projection": "identity"},
        {"local_text_projection": "identity", "text_projection": "token", "text_pooling": "cls"},
        {"vision_pooling": "max", "vision_projection": "linear"},
        {"local_vision_weight": 0.5, "cls_vision_weight": 2.0},
        {"vision_feature_layer": 1},
        {"local_text_projection": "identity", "text_projection": "identity", "embed_dim": 16},
    ],
)
def test_every_switch_gives_unit_embeddings_and_survives_saving(folders, tmp_path, switches):
    model = DualEncoderModel.from_towers(*folders, **{"embed_dim": 12, **switches})
    before = model(**batch())
    model.save_pretrained(tmp_path / "saved")
    after = DualEncoderModel.from_pretrained(tmp_path / "saved")(**batch())
    torch.testing.assert_close(before.image_embeds.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(before.text_embeds.norm(dim=-1), torch.ones(3))
    assert torch.equal(before.logits_per_image, after.logits_per_image)


def test_without_the_patches_only_the_class_token_is_kept(folders):
    model = DualEncoderModel.from_towers(*folders, local_vision_projection="identity")
    assert model.vision_tokens(batch()["pixel_values"]).shape == (3, 1, 16)


def test_a_head_on_pooled_tower_tokens_reads_the_towers_width(folders):
    model = DualEncoderModel.from_towers(*folders, embed_dim=12, local_text_projection="identity")
    assert model.text_projection.projection.in_features == 16


def test_towers_are_not_saved_again(pair, tmp_path):
    pair.save_pretrained(tmp_path / "saved")
    names = load_file(tmp_path / "saved" / "model.safetensors").keys()
    assert names == {name for name, p in pair.named_parameters() if p.requires_grad}
    again = AutoModel.from_pretrained(tmp_path / "saved")
    assert isinstance(again, DualEncoderModel)
    assert torch.equal(again(**batch()).logits_per_image, pair(**batch()).logits_per_image)
    assert [name for name, p in again.named_parameters() if p.requires_grad] == [
        name for name, p in pair.named_parameters() if p.requires_grad
    ]


def test_a_folder_can_be_whole_by_itself(pair, folders, tmp_path):
    pair.save_pretrained(tmp_path / "whole", include_towers=True)
    for folder in folders:
        folder.rename(folder.with_name("gone-" + folder.name))
    again = DualEncoderModel.from_pretrained(tmp_path / "whole")
    assert torch.equal(again(**batch()).logits_per_image, pair(**batch()).logits_per_image)
    assert not any(p.requires_grad for p in again.vision_tower.parameters())


def test_a_tower_that_learned_is_saved_with_the_model(pair, tmp_path):
    layer = pair.text_tower.encoder.layer[1]
    layer.requires_grad_(True)
    with torch.no_grad():
        layer.output.dense.weight.add_(1.0)
    pair.save_pretrained(tmp_path / "once")
    once = DualEncoderModel.from_pretrained(tmp_path / "once")
    once.requires_grad_(False).save_pretrained(tmp_path / "twice")
    twice = DualEncoderModel.from_pretrained(tmp_path / "twice")
    assert once.config.stored_towers == ["text"]
    assert torch.equal(twice(**batch()).logits_per_image, pair(**batch()).logits_per_image)


def test_towers_given_as_models_are_saved_with_the_pair(tmp_path):
    model = DualEncoderModel.from_towers(vision(), text())
    model.save_pretrained(tmp_path)
    again = DualEncoderModel.from_pretrained(tmp_path)
    assert torch.equal(again(**batch()).logits_per_image, model(**batch()).logits_per_image)


def test_assembling_leaves_the_towers_as_they_were(folders):
    model = DualEncoderModel.from_towers(*folders)
    for tower, folder in ((model.vision_tower, folders[0]), (model.text_tower, folders[1])):
        for name, tensor in AutoModel.from_pretrained(folder).state_dict().items():
            assert torch.equal(tensor, tower.state_dict()[name]), name


def test_a_tower_that_was_moved_can_be_named(pair, folders, tmp_path):
    pair.save_pretrained(tmp_path / "saved")
    moved = folders[0].rename(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"was trained on the vision tower .*put it back, or say where"):
        DualEncoderModel.from_pretrained(tmp_path / "saved")
    again = DualEncoderModel.from_pretrained(tmp_path / "saved", vision_tower=moved)
    assert torch.equal(again(**batch()).logits_per_image, pair(**batch()).logits_per_image)


def test_a_tower_with_other_weights_is_refused(pair, folders, tmp_path):
    pair.save_pretrained(tmp_path / "saved")
    torch.manual_seed(99)
    text().save_pretrained(folders[1])
    with pytest.raises(ValueError, match=r"text tower .* with other weights than it has now"):
        DualEncoderModel.from_pretrained(tmp_path / "saved")


def test_missing_tensors_are_named(pair, tmp_path):
    pair.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vision_projection": "linear"}))
    with pytest.raises(ValueError, match=r"Missing: \['vision_projection.bias'"):
        DualEncoderModel.from_pretrained(tmp_path)


def test_frozen_towers_stay_in_eval_mode_unless_the_configuration_wants_the_released_behaviour(folders):
    model = DualEncoderModel.from_towers(*folders)
    model.train()
    assert not model.text_tower.training
    assert model.text_projection.training
    model.config.towers_in_train_mode = True
    assert model.train().text_tower.training
    model.config.towers_in_train_mode = False
    model.text_tower.requires_grad_(True)
    assert model.train().text_tower.training


def test_temperature_is_kept_in_its_range_and_can_come_back(pair):
    given = batch()
    with torch.no_grad():
        pair.temperature.value.fill_(0.9)
    outputs = pair(**given)
    torch.testing.assert_close(outputs.logits_per_image, outputs.image_embeds @ outputs.text_embeds.T / 0.5)
    pair.train()
    pair(**given, objective=FreezeAlign()).loss.backward()
    assert pair.temperature.value == 0.5
    assert pair.temperature.value.grad != 0


def test_embedding_in_pieces_gives_the_same_loss_and_gradients(pair):
    given = batch(7)
    pair.train()
    learned = [p for p in pair.parameters() if p.requires_grad]
    for module in pair.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    whole = torch.autograd.grad(pair(**given, objective=FreezeAlign()).loss, learned)
    pieces = FreezeAlign(FreezeAlignConfig(embed_rows=3))
    for one, other in zip(torch.autograd.grad(pair(**given, objective=pieces).loss, learned), whole, strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_is_the_same_when_a_piece_is_made_again(folders):
    model = DualEncoderModel.from_towers(*folders, projector_dropout=0.5).train()
    given, pieces = batch(4), FreezeAlign(FreezeAlignConfig(embed_rows=2))

    def loss(seed):
        torch.manual_seed(seed)
        return model(**given, objective=pieces).loss

    weight = model.text_projection.fc.bias
    slope = torch.autograd.grad(loss(3), weight)[0][0]
    with torch.no_grad():
        weight[0] += 1e-2
        above = loss(3)
        weight[0] -= 2e-2
        below = loss(3)
    torch.testing.assert_close((above - below) / 2e-2, slope, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("tower", "tokens"),
    [
        (lambda: vision(), 5),
        (lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL, image_size=28, patch_size=14)), 5),
        (
            lambda: SiglipVisionModel(SiglipVisionConfig(**SMALL, intermediate_size=32, image_size=28, patch_size=14)),
            5,
        ),
        (lambda: ConvNextModel(ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1])), 10),
    ],
    ids=["class token", "registers", "no class token", "feature map"],
)
def test_any_vision_tower_gives_one_global_token_and_its_patches(tower, tokens):
    model = DualEncoderModel.from_towers(tower(), text())
    assert model.vision_tokens(batch()["pixel_values"]).shape == (3, tokens, 16)
    assert model(**batch()).image_embeds.isfinite().all()


def test_clips_text_tower_is_pooled_at_its_last_token():
    config = CLIPTextConfig(**SMALL, intermediate_size=32, vocab_size=50, max_position_embeddings=16, eos_token_id=49)
    tower = CLIPTextModel(config).eval()
    model = DualEncoderModel.from_towers(
        vision(), tower, text_pooling="cls", local_text_projection="identity", text_projection="token"
    )
    ids = torch.tensor([[1, 5, 49, 49], [1, 6, 7, 49]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    expected = tower(input_ids=ids, attention_mask=mask).pooler_output
    torch.testing.assert_close(model.text_tokens(ids, mask)[:, 0], expected)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"text_projection": "patch"}, "text_projection is one of token, mlp, linear, identity: got 'patch'"),
        (
            {"local_vision_projection": "identity", "cls_vision_projection": "identity"},
            "leaves patches and class token out",
        ),
        ({"temperature_init": 0.7}, "temperature_init <= temperature_max"),
        (
            {"local_text_projection": "identity", "text_projection": "identity", "embed_dim": 12},
            r"own width \(16\) must be embed_dim \(12\)",
        ),
        ({"vision_pooling": "cls"}, "vision_pooling is one of mean, max"),
    ],
)
def test_switches_that_cannot_be_right_are_refused(switches, message):
    with pytest.raises(ValueError, match=message):
        DualEncoderModel.from_towers(vision(), text(), **switches)


def test_pixels_and_features_at_once_are_refused(pair):
    given = batch()
    with pytest.raises(ValueError, match="either as pixel_values or as the tower's tokens"):
        pair(**given, vision_features=torch.zeros(3, 5, 16))
