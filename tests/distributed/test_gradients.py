"""Both heads' gradients, and every other one, at each ZeRO level: one rank of pictures, one of text, against one process."""

import pytest
import torch
from ranks import on_ranks
from runs import LEVELS
from tiny import image_batch, text_batch, tiny_config

from vwlmm import VisualWordLlavaForConditionalGeneration
from vwlmm.objectives import VisualWords, VisualWordsConfig

CASES = [
    (level, pseudo, checkpointing)
    for level in ("zero1", "zero2", "zero3")
    for pseudo, checkpointing in ((False, False), (True, False), (True, True))
]


def build(pseudo):
    torch.manual_seed(0)
    model = VisualWordLlavaForConditionalGeneration(tiny_config(pseudo_image_features=pseudo)).train()
    model.model.vision_tower.requires_grad_(False)
    # Both heads learn in this step: from the loss, and with a live target from each other.
    return model, VisualWords(VisualWordsConfig(detach_target=False))


def counted(model, objective):
    counts = [model.count_items(batch, objective) for batch in (image_batch(), text_batch())]
    return {name: counts[0][name] + counts[1][name] for name in counts[0]}


def one_process(pseudo):
    model, objective = build(pseudo)
    num_items = counted(model, objective)
    for batch in (image_batch(), text_batch()):
        model(**batch, objective=objective, num_items=num_items).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients_of(cases):
    """On one rank: the full gradients of each case, two steps each, as a head may be right once and stale afterwards."""
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    from vwlmm.distributed import rank, start_deepspeed_on_cpu

    start_deepspeed_on_cpu()
    batch = (image_batch(), text_batch())[rank()]
    found = []
    for level, pseudo, checkpointing in cases:
        model, objective = build(pseudo)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        num_items = counted(model, objective)
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        config = {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0, **LEVELS[level]}
        config["zero_allow_untested_optimizer"] = True
        optimizer = torch.optim.SGD(learning, lr=0.0)
        engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
        for _ in range(2):
            loss = engine(**batch, objective=objective, num_items=num_items).loss
            engine.backward(loss * 2)  # ranks' gradients are averaged
            gradients = {n: safe_get_full_grad(p) for n, p in model.named_parameters() if p.requires_grad}
            engine.step()
        found.append(gradients if rank() == 0 else None)
        engine.destroy()
    return found


def gradients_under_fsdp2(pseudo_cases):
    """On one rank: torch's own fully_shard on a CPU mesh, which accelerate would not use there."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from vwlmm.distributed import rank

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    batch = (image_batch(), text_batch())[rank()]
    found = []
    for pseudo in pseudo_cases:
        model, objective = build(pseudo)
        num_items = counted(model, objective)
        apart = [model.lm_head, model.vm_head, model.get_input_embeddings()]
        for module in (*model.model.language_model.layers, *apart, model):
            fully_shard(module, mesh=mesh)
        for _ in range(2):
            model.zero_grad()
            (model(**batch, objective=objective, num_items=num_items).loss * 2).backward()
        found.append({n: p.grad.full_tensor() for n, p in model.named_parameters() if p.requires_grad})
    return found if rank() == 0 else None


@pytest.fixture(scope="module")
def found():
    sharded = on_ranks(2, gradients_under_fsdp2, [False, True])[0]
    fsdp2 = {("fsdp2", pseudo, False): gradients for pseudo, gradients in zip((False, True), sharded, strict=True)}
    return fsdp2 | dict(zip(CASES, on_ranks(2, gradients_of, CASES)[0], strict=True))


@pytest.mark.parametrize(
    "case", [*CASES, ("fsdp2", False, False), ("fsdp2", True, False)], ids=lambda case: "-".join(map(str, case))
)
def test_gradients_equal_one_process(found, case):
    expected = one_process(case[1])
    assert found[case].keys() == expected.keys()
    for name, gradient in expected.items():
        relative = (found[case][name] - gradient).norm() / gradient.norm().clamp(min=1e-12)
        bound = 1e-6 if "head" in name else 1e-5
        assert relative < bound or gradient.norm() < 1e-7, (name, float(relative))
