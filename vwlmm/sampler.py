"""Which rows each rank reads, batch by batch: the same rows a step for every number of ranks, and none twice.

Rows may be grouped by length and modality (`training.train_sampling_strategy: group_by_length`), which saves padding;
nothing depends on it, as every rank runs every module whatever its rows are.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, IterableDataset, Sampler, get_worker_info

from vwlmm.data.bad_row import BadRow
from vwlmm.distributed import gathered_lists

POOL = 50  # global batches that are sorted together: enough to find rows alike, few enough to stay random


class RankBatches(Sampler[list[int]]):
    """One rank's share of batches: every n-th. When they do not go round, the last ranks get an empty batch.

    Other shards repeat rows there, which counts them twice in a loss, or drop them. A collator turns an empty batch into a
    row without a scored token, so that every rank takes the same number of steps.

    Args:
        batches: batches of all ranks.
        rank, processes: which share.
        drop_last: leave a last incomplete round out.
    """

    def __init__(self, batches: BatchSampler, rank: int, processes: int, drop_last: bool = False) -> None:
        self.batches = batches
        self.rank = rank
        self.processes = processes
        self.drop_last = drop_last

    @property
    def batch_sampler(self) -> "RankBatches":
        # Trainer hands the epoch to `loader.batch_sampler.batch_sampler`, where it expects a shard around a sampler.
        return self

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.batches.sampler, "set_epoch"):
            self.batches.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        rounds, over = divmod(len(self.batches), self.processes)
        return rounds + (over > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        own: list[int] = []
        count = 0
        for number, batch in enumerate(self.batches):
            count = number % self.processes
            if count == self.rank:
                own = batch
            if count == self.processes - 1:
                yield own
                own = []
        if count != self.processes - 1 and len(self.batches) and not self.drop_last:
            yield own


class StreamedBatches(IterableDataset):
    """One rank's batches of a stream: the order is the stream's, whatever the number of ranks and of worker processes.

    For a `DataLoader` with `batch_size=None`, whose workers take turns. Each reads the whole stream and encodes its own
    batches only. When batches do not go round, the last ranks get an empty one, as in `RankBatches`.

    Args:
        dataset: has `raw_records()`, all rows in order, and an `encoder` that makes examples of them.
        batch_size: rows of a batch.
        rank, processes: which share.
        drop_last: leave a last incomplete batch and a last incomplete round out.
    """

    def __init__(self, dataset: Any, batch_size: int, rank: int, processes: int, *, drop_last: bool = False) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.rank = rank
        self.processes = processes
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list[Any]]:
        worker = get_worker_info()
        turn, turns = (0, 1) if worker is None else (worker.id, worker.num_workers)
        step, number, count = self.batch_size * self.processes, 0, 0
        own: list[Any] = []
        for count, record in enumerate(self.dataset.raw_records(), start=1):
            number, place = divmod(count - 1, step)
            if number % turns == turn and place // self.batch_size == self.rank:
                own.append(record)
            if count % step == 0 and number % turns == turn:
                yield self._examples(own)
                own = []
        if count % step and number % turns == turn and not self.drop_last:
            yield self._examples(own)

    def _examples(self, records: list[Any]) -> list[Any]:
        return [self.dataset.encoder.example(record) for record in records]


class GroupedRows(Sampler[int]):
    """Row numbers of an epoch, shuffled so that each global batch has rows of one modality and of like length.

    What is left of each modality, less than a global batch, makes the last batches of the shuffle; data of one modality
    only are grouped by length alone.

    Args:
        lengths: tokens of each row.
        has_image: True for rows with images.
        batch: rows of a global batch (of all ranks and accumulated micro-batches).
        seed: of the shuffle, with the epoch.
    """

    def __init__(self, lengths: list[int], has_image: list[bool], batch: int, seed: int) -> None:
        self.lengths = lengths
        self.has_image = has_image
        self.batch = batch
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        batches: list[list[int]] = []
        left_over: list[int] = []
        for modality in (True, False):
            rows = [row for row in order if self.has_image[row] == modality]
            for start in range(0, len(rows), POOL * self.batch):
                pool = sorted(rows[start : start + POOL * self.batch], key=lambda row: -self.lengths[row])
                cut = [pool[at : at + self.batch] for at in range(0, len(pool), self.batch)]
                if len(cut[-1]) < self.batch:
                    left_over += cut.pop()
                batches += cut
        batches += [left_over[at : at + self.batch] for at in range(0, len(left_over) - self.batch + 1, self.batch)]
        short = len(left_over) % self.batch
        for number in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[number]
        # An incomplete batch comes last, where a step of fewer rows is expected.
        yield from left_over[len(left_over) - short :]


def lengths_and_modalities(dataset: Any, rank: int = 0, processes: int = 1) -> tuple[list[int], list[bool]]:
    """Tokens of every row, image tokens included, and whether it has an image; each rank encodes its share of the rows.

    No image is opened. A bad row counts as 1 token without an image where rows are quarantined.

    Raises:
        BadRow: a row cannot be learned from, and on_bad_row is `stop`.
        ValueError: the dataset cannot tell lengths without opening images.
    """
    if not hasattr(dataset, "encoded") or not hasattr(dataset, "__len__"):
        raise ValueError(
            "training.train_sampling_strategy: group_by_length needs rows with a number and a length: set data.streaming: "
            "false, or leave the key out."
        )
    own: list[tuple[int, bool]] = []
    for index in range(rank, len(dataset), processes):
        try:
            row = dataset.encoded(index)
            own.append((len(row.input_ids), bool(row.images)))
        except BadRow:
            if dataset.encoder.config.on_bad_row == "stop":
                raise
            own.append((1, False))
    shares = gathered_lists(own) if processes > 1 else [own]
    every = [shares[index % processes][index // processes] for index in range(len(dataset))]
    return [length for length, _ in every], [is_image for _, is_image in every]
