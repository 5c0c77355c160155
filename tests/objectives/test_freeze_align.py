"""The freeze-align objective: counts and terms, and two ranks that gather against one process on the joined batch."""

import pytest
import torch
import torch.distributed as dist
from forked_ranks import on_ranks
from torch.nn.functional import normalize

from vwlmm.functional import contrastive_loss
from vwlmm.objectives import OBJECTIVES, FreezeAlign, FreezeAlignConfig


def embeddings(count=7, dim=5):
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
    return inputs.requires_grad_(), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)


def loss_of(objective, inputs, temperature, pairs):
    images, texts = normalize(inputs, dim=-1)
    sums = objective(image_embeds=images, text_embeds=texts, temperature=temperature)
    return objective.combine(sums, {"contrastive": torch.tensor(pairs)})


def test_the_loss_is_the_mean_over_pairs_and_every_term_is_logged():
    inputs, temperature = embeddings()
    loss, terms = loss_of(FreezeAlign(), inputs, temperature, 7)
    torch.testing.assert_close(loss, contrastive_loss(*normalize(inputs, dim=-1), temperature))
    assert set(terms) == {"contrastive_loss", "temperature"}
    torch.testing.assert_close(terms["temperature"], temperature.detach())
    assert not any(term.requires_grad for term in terms.values())
    assert FreezeAlign().weigh({name: float(term) for name, term in terms.items()}) == float(loss.detach())


def test_the_recipe_finds_it_by_its_name():
    objective, config = OBJECTIVES["freeze_align"]
    assert isinstance(objective(config(gather=True)), FreezeAlign)


@pytest.mark.parametrize("field", ["embed_rows", "chunk_rows"])
def test_a_number_of_rows_below_one_is_refused(field):
    with pytest.raises(ValueError, match=f"objective.{field} is a positive number"):
        FreezeAlignConfig(**{field: 0})


def test_gather_on_one_process_changes_nothing():
    inputs, temperature = embeddings()
    plain = loss_of(FreezeAlign(), inputs, temperature, 7)[0]
    assert torch.equal(plain, loss_of(FreezeAlign(FreezeAlignConfig(gather=True)), inputs, temperature, 7)[0])


def share_of_the_batch(rank, bounds, gather, chunk_rows):
    """This rank's loss, and the gradients of its rows and of the temperature, as plain numbers."""
    inputs, temperature = embeddings()
    own = inputs[:, bounds[rank] : bounds[rank + 1]].detach().requires_grad_()
    objective = FreezeAlign(FreezeAlignConfig(gather=gather, chunk_rows=chunk_rows))
    loss, _ = loss_of(objective, own, temperature, 7)
    gradients = torch.autograd.grad(loss, [own, temperature])
    return loss.item(), gradients[0].tolist(), gradients[1].item()


@pytest.mark.parametrize(("bounds", "chunk_rows"), [((0, 4, 7), None), ((0, 6, 7), 2), ((0, 3, 5, 7), 1)])
def test_ranks_that_gather_equal_one_process_on_the_joined_batch(bounds, chunk_rows):
    found = on_ranks(len(bounds) - 1, share_of_the_batch, bounds, True, chunk_rows)
    inputs, temperature = embeddings()
    loss, _ = loss_of(FreezeAlign(), inputs, temperature, 7)
    rows, heat = torch.autograd.grad(loss, [inputs, temperature])
    assert sum(one[0] for one in found) == pytest.approx(loss.item(), rel=1e-9)
    joined = torch.cat([torch.tensor(one[1], dtype=torch.float64) for one in found], dim=1)
    torch.testing.assert_close(joined, rows)
    assert sum(one[2] for one in found) == pytest.approx(heat.item(), rel=1e-9)


def test_ranks_that_do_not_gather_know_only_their_own_pairs():
    found = on_ranks(2, share_of_the_batch, (0, 4, 7), False, None)
    inputs, temperature = embeddings()
    parts = [inputs[:, :4], inputs[:, 4:]]
    expected = [loss_of(FreezeAlign(), part, temperature, 7)[0].item() for part in parts]
    assert [one[0] for one in found] == pytest.approx(expected, rel=1e-9)


def small_pair():
    from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model

    from vwlmm import DualEncoderModel

    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = Dinov2Model(Dinov2Config(**sizes, image_size=28, patch_size=14))
    text = BertModel(BertConfig(**sizes, intermediate_size=32, vocab_size=50, max_position_embeddings=16))
    return DualEncoderModel.from_towers(vision, text, projector_dropout=0.0).double().train()


def small_batch():
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(6, 3, 28, 28, generator=generator, dtype=torch.float64),
        "input_ids": torch.randint(1, 50, (6, 5), generator=generator),
        "attention_mask": torch.ones(6, 5, dtype=torch.long),
    }


def gradients_under_ddp(rank, embed_rows):
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(small_pair())
    own = {name: tensor[4 * rank : 4 * rank + 4] for name, tensor in small_batch().items()}
    objective = FreezeAlign(FreezeAlignConfig(gather=True, embed_rows=embed_rows))
    outputs = model(**own, objective=objective, num_items={"contrastive": torch.tensor(6)})
    (outputs.loss * dist.get_world_size()).backward()  # as the trainer does: ranks' gradients are averaged
    found = {name: p.grad.tolist() for name, p in model.module.named_parameters() if p.grad is not None}
    return outputs.loss.item(), found


@pytest.mark.parametrize("embed_rows", [None, 1])
def test_two_ranks_give_every_parameter_the_gradient_of_one_process(embed_rows):
    found = on_ranks(2, gradients_under_ddp, embed_rows)
    model = small_pair()
    loss = model(**small_batch(), objective=FreezeAlign()).loss
    loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found[0][0] + found[1][0] == pytest.approx(loss.item(), rel=1e-9)
    for _, gradients in found:
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(torch.tensor(gradients[name], dtype=torch.float64), gradient, msg=name)
