"""A run that is asked to stop: SIGTERM or SIGUSR1 lets the step finish, saves a checkpoint and ends, on all ranks together."""

import atexit
import logging
import multiprocessing
import multiprocessing.util
import signal
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

# SIGTERM is what schedulers and launchers send; SLURM can send SIGUSR1 to a job some minutes before its time is over.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1) if hasattr(signal, "SIGUSR1") else (signal.SIGTERM,)


class RunStopped(Exception):
    """A run that a signal ended early, with its checkpoint written.

    Args:
        step: optimiser steps done.
        max_steps: of the whole run.
    """

    def __init__(self, step: int, max_steps: int) -> None:
        super().__init__(step, max_steps)
        self.step = step
        self.max_steps = max_steps


class StopOnSignal(TrainerCallback):
    """Catches the signals while a run trains, and stops every rank at the same step, with a checkpoint.

    A signal may reach one rank, or all of them at different steps; so each step begins with `exchange`, and all ranks stop
    at the end of the first step that begins after any of them was asked.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self.stopped = False
        self._before: dict[int, Any] = {}
        self._everyone: torch.Tensor | None = None
        self._ready: Any = None

    def exchange(self, accelerator: Any) -> None:
        """Tells the other ranks, once a step; the answer is read at the step's end, so that no GPU is waited for."""
        if accelerator.num_processes == 1:
            return
        own = torch.tensor([int(self.is_asked)], device=accelerator.device)
        asked = accelerator.gather(own).max()
        if asked.device.type != "cuda":
            self._everyone = asked
            return
        self._everyone = torch.empty((), dtype=asked.dtype, pin_memory=True)
        self._everyone.copy_(asked, non_blocking=True)
        self._ready = torch.cuda.Event()
        self._ready.record()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no signals
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < state.max_steps and self._all_asked():
            self.stopped = control.should_training_stop = control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped:  # in the middle of the epoch: what belongs to its end comes after the resume
            control.should_save = control.should_evaluate = control.should_log = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _ask(self, number: int, frame: Any) -> None:
        self.is_asked = True

    def _all_asked(self) -> bool:
        if self._everyone is None:
            return self.is_asked
        if self._ready is not None:
            self._ready.synchronize()
        return bool(self._everyone)


@cache
def end_workers_at_exit() -> None:
    """Lets this process end although `ignore_in_worker` made its workers deaf to the SIGTERM that Python ends them with."""

    def kill() -> None:
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()

    atexit.register(kill)  # runs before the handler that multiprocessing registered when it was imported


def ignore_in_worker(worker_id: int, init: Callable[[int], None] | None = None) -> None:
    """Start of a process that reads rows: a signal to the whole job must not end it while its rank still saves."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if init is not None:
        init(worker_id)
