"""Runs a function on gloo ranks that are forked from the test itself: for mathematics over ranks, without DeepSpeed."""

import multiprocessing
import os
import queue
import socket
import traceback
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist


def free_port():
    """A port of this machine that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_rank(rank, world, port, results, work, arguments):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=60))
        results.put((rank, work(rank, *arguments)))
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, traceback.format_exc()))


def on_ranks(world, work, *arguments):
    """What `work(rank, …)` returns on each of some forked gloo ranks."""
    port = free_port()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [
        context.Process(target=run_rank, args=(r, world, port, results, work, arguments), daemon=True)
        for r in range(world)
    ]
    for child in children:
        child.start()
    try:
        found = dict(results.get(timeout=90) for _ in children)
    except queue.Empty:
        pytest.fail("a rank did not answer within 90 s")
    finally:
        for child in children:
            child.join(5)
            if child.is_alive():
                child.kill()
    for value in found.values():
        assert not isinstance(value, str), value
    return [found[rank] for rank in range(world)]
