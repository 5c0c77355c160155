"""Processes that train together: how they start, agree and wait, the same on CPU (gloo) and GPU, on one node and many.

Under `python` there is one process; torchrun, deepspeed and accelerate start one a GPU and tell each its rank.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def world_size() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def start_deepspeed_on_cpu(timeout: timedelta = timedelta(minutes=10)) -> None:
    """Lets DeepSpeed's ranks talk over gloo; a machine with a GPU needs none of this.

    Has to come before TrainingArguments: without it every rank of a machine without GPUs believes to be alone, and
    ZeRO-3 partitions a model over a world it does not know.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    # This op is compiled at start, needs a compiler, and serves inference only.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", timeout=timeout, verbose=False)


def pretend_launched() -> None:
    """Gives a process that plain `python` started the environment that DeepSpeed expects of a launcher: rank 0 of 1."""
    if "RANK" in os.environ:
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    for name, value in {**alone, "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, str(value))


def agreed(decide: Callable[[], T]) -> T:
    """What rank 0 finds, on every rank: files may change between two looks. An error of rank 0 is raised by all."""
    if not _is_distributed():
        return decide()
    answer: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            answer[0] = decide()
        except (ValueError, OSError, ImportError) as problem:
            answer[1] = problem
    torch.distributed.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def first_on_each_node(prepare: Callable[[], T]) -> T:
    """Runs `prepare` on one process of each node, then on the others, which find its files."""
    if not _is_distributed():
        return prepare()
    is_first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    result: Any = None
    problem: Exception | None = None
    if is_first:
        try:
            result = prepare()
        except (ValueError, OSError, ImportError) as failed:
            problem = failed  # the others wait below, and meet the same error themselves
    torch.distributed.barrier()
    if problem is not None:
        raise problem
    return result if is_first else prepare()


def gathered_lists(own: list[Any]) -> list[list[Any]]:
    """Every rank's list, by rank."""
    if not _is_distributed():
        return [own]
    lists: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(lists, own)
    return lists


@contextlib.contextmanager
def whole_models() -> Iterator[None]:
    """Models made inside are whole on every rank, also under ZeRO-3, which partitions them when training begins.

    For models put together from parts, measured, or merged: all that reads weights outside a forward. It takes the
    model's size in CPU memory a rank; a model that is only read from a folder is partitioned while it is read.
    """
    from transformers.integrations import deepspeed as integration

    config = integration._hf_deepspeed_config_weak_ref and integration._hf_deepspeed_config_weak_ref()
    if config is None:
        yield
        return
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        integration.set_hf_deepspeed_config(config)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
