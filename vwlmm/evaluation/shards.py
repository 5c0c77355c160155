"""Which share of the questions a process answers: every `count`-th, so that shards are equally long and equally hard.

torchrun, deepspeed and accelerate say it in the environment; `--shard 0/4` says it by hand, one machine after another.
"""

import os
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Shard:
    """Process `rank` of `count`; `connected` when the processes were started together and can wait for each other."""

    rank: int = 0
    count: int = 1
    connected: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise ValueError(f"A shard is I/N with I from 0 to N − 1, like 0/4: got {self.rank}/{self.count}.")

    @property
    def label(self) -> str:
        """Part of a file name; processes with the same label answer the same questions."""
        return f"{self.rank}-of-{self.count}"

    def owns(self, index: int) -> bool:
        """True when this process answers the question of that place in the official order."""
        return index % self.count == self.rank

    def wait(self) -> None:
        """Returns when every process has come here; at once for a process of its own."""
        if self.connected:
            import torch.distributed as dist

            if not dist.is_initialized():
                # Shards end hours apart when one GPU is shared: the usual half hour would end the run.
                dist.init_process_group("gloo", timeout=timedelta(days=7))
            dist.barrier()


def read_shard(text: str | None) -> Shard:
    """The shard of `--shard I/N`, or of the launcher's environment when None.

    Raises:
        ValueError: the text is not `I/N`.
    """
    if text is not None:
        rank, slash, count = text.partition("/")
        if not (slash and rank.strip().isdigit() and count.strip().isdigit()):
            raise ValueError(f"A shard is I/N, like 0/4: got {text!r}.")
        return Shard(int(rank), int(count))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return Shard(int(os.environ.get("RANK", "0")), world, connected=world > 1)


def local_device() -> str | None:
    """This process's GPU when a launcher started several on this machine; None leaves the choice to `load_model`."""
    import torch

    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank is not None and torch.cuda.is_available() else None
