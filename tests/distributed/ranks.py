"""Runs a function on several ranks that talk over gloo. The processes are forked from a server that has imported torch,
transformers and DeepSpeed once, so that a test costs what it computes.
"""

import contextlib
import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forked_ranks import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def on_ranks(number: int, function: Callable[..., Any], *args: Any, timeout: int = 120) -> list[Any]:
    """The answers of `function(*args)` by rank; an error of a rank is raised here with its traceback.

    A rank that is silent for `timeout` seconds is ended, which is how a deadlock shows.
    """
    ranks, answers = _start(number, function, args)
    found: dict[int, Any] = {}
    try:
        while len(found) < number:
            rank, is_good, answer = answers.get(timeout=timeout)
            assert is_good, f"rank {rank} of {number}:\n{answer}"
            found[rank] = pickle.loads(answer)
        for process in ranks:
            process.join(timeout=20)
    finally:
        for process in ranks:
            if process.is_alive():
                process.kill()
    return [found[rank] for rank in range(number)]


def kill_on_ranks(
    number: int, function: Callable[..., Any], *args: Any, when: Callable[[], bool], delay: float
) -> bool:
    """Starts `function(*args)` on several ranks and kills them all (SIGKILL) `delay` seconds after `when()` holds.

    Returns:
        True if they were killed, False if they were done before.
    """
    ranks, _ = _start(number, function, args)
    while not when() and any(process.is_alive() for process in ranks):
        time.sleep(0.002)
    time.sleep(delay)
    killed = any(process.is_alive() for process in ranks)
    for process in ranks:
        process.kill()
        process.join()
    return killed


def _start(number: int, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[list[Any], Any]:
    context = _server()
    port = free_port()
    answers = context.Queue()
    ranks = [
        context.Process(target=_rank, args=(answers, rank, number, port, function, args), daemon=False)
        for rank in range(number)
    ]
    for process in ranks:
        process.start()
    return ranks, answers


def _server() -> Any:
    # The server reads these when it starts, with the first call.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["DS_ACCELERATOR"] = "cpu"
    paths = [str(ROOT), str(HERE), str(HERE.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preload"])
    return context


def _rank(answers: Any, rank: int, number: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="127.0.0.1")
    try:
        # By value: a queue would hand tensors over as files of a process that is gone by then.
        answer = (rank, True, pickle.dumps(function(*args)))
    except BaseException:
        answer = (rank, False, traceback.format_exc())
    answers.put(answer)
    answers.close()
    answers.join_thread()
    sys.stdout.flush()
    with contextlib.suppress(Exception):
        import torch

        torch.distributed.destroy_process_group()
    os._exit(0)  # atexit hooks of DeepSpeed wait for ranks that an error has ended
