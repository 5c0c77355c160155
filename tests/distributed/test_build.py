"""Under ZeRO-3 a model is made, extended, started and saved as on one process."""

import pytest
import torch
from ranks import on_ranks
from runs import LEVELS

from vwlmm.assembly import assemble, initialise_vm_head
from vwlmm.loading import load_model


def whole_state(model):
    """Every tensor of a model, gathered where it is partitioned."""
    import contextlib

    import deepspeed

    state = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        gather = (
            deepspeed.zero.GatheredParameters(parameter) if hasattr(parameter, "ds_id") else contextlib.nullcontext()
        )
        with gather:
            state[name] = parameter.detach().clone()
    return state


def make(trained, parts):
    """By name: the models that the tests compare."""
    models = {}
    torch.manual_seed(5)
    model, _ = load_model(trained)
    models["read"] = model
    torch.manual_seed(5)
    words, _ = load_model(trained)
    words.resize_token_embeddings(words.config.text_config.vocab_size + 3)
    models["three more words"] = words
    for start in ("lm_head", "word_embeddings", "random"):
        torch.manual_seed(5)
        headed, _ = load_model(trained)
        initialise_vm_head(headed, start)
        models[f"VM head from {start}"] = headed
    return models


def make_partitioned(trained, parts, out):
    """On one rank under ZeRO-3: the state of each model, how many parameters were partitioned, and a saved folder."""
    from transformers import TrainingArguments

    from vwlmm.config import ModelConfig
    from vwlmm.distributed import rank, start_deepspeed_on_cpu, whole_models
    from vwlmm.training import build_model

    start_deepspeed_on_cpu()
    config = {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 1.0, **LEVELS["zero3"]}
    arguments = TrainingArguments(output_dir=str(out), deepspeed=config, per_device_train_batch_size=1, use_cpu=True)
    # Before anything is read in partitions: DeepSpeed leaves classes without an __init__ of their own wrapped after that.
    with whole_models():
        torch.manual_seed(5)
        description = ModelConfig(
            vision_tower=str(parts / "tower"), language_model=str(parts / "llm"), chat_template="chatml"
        )
        assembled = whole_state(build_model(description)[0])
    models = make(trained, parts)
    partitioned = {name: sum(hasattr(p, "ds_id") for p in model.parameters()) for name, model in models.items()}
    states = {name: whole_state(model) for name, model in models.items()}
    states["assembled"] = assembled
    del arguments
    return (states, partitioned) if rank() == 0 else None


@pytest.fixture(scope="module")
def both(trained, parts, tmp_path_factory):
    states, partitioned = on_ranks(2, make_partitioned, trained, parts, tmp_path_factory.mktemp("zero3"))[0]
    assert all(partitioned.values()), partitioned
    expected = {name: whole_state(model) for name, model in make(trained, parts).items()}
    torch.manual_seed(5)
    expected["assembled"] = whole_state(assemble(parts / "tower", parts / "llm", chat_template="chatml")[0])
    return states, expected


@pytest.mark.parametrize("name", ["read", "VM head from lm_head", "VM head from word_embeddings", "assembled"])
def test_a_model_made_under_zero3_is_the_model_of_one_process(both, name):
    found, expected = both[0][name], both[1][name]
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


def test_new_words_under_zero3_lengthen_all_three_tables_and_leave_the_old_rows(both):
    found, before = both[0]["three more words"], both[0]["read"]
    longer = {key for key in found if found[key].shape != before[key].shape}
    assert longer == {"lm_head.weight", "vm_head.weight", "model.language_model.embed_tokens.weight"}
    for key in longer:
        assert len(found[key]) == len(before[key]) + 3
        assert torch.equal(found[key][:-3], before[key])
        # New rows are drawn near the mean of the old ones (transformers' mean resizing), never left empty.
        assert found[key][-3:].norm() > 0
    assert all(torch.equal(found[key], before[key]) for key in found.keys() - longer)


def test_a_random_vm_head_under_zero3_is_a_whole_table_of_the_model_s_deviation(both):
    head = both[0]["VM head from random"]["vm_head.weight"]
    assert head.shape == both[1]["read"]["vm_head.weight"].shape
    assert float(head.std()) == pytest.approx(0.02, rel=0.05)
    assert float(head.mean()) == pytest.approx(0.0, abs=1e-3)
