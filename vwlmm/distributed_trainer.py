"""transformers' Trainer as one rank among many: exact shares of the rows, whole checkpoints, a clean stop, no empty tensor.

`ObjectiveTrainer` builds on it; nothing here knows objectives or models.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, SequentialSampler
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints, seed_worker

from vwlmm.checkpoints import disk_full_explained, mark_whole, unmark
from vwlmm.data.dataset import StreamedRowDataset
from vwlmm.resuming import global_batch, sharding
from vwlmm.sampler import GroupedRows, RankBatches, StreamedBatches, lengths_and_modalities
from vwlmm.stopping import StopOnSignal, end_workers_at_exit, ignore_in_worker


class DistributedTrainer(Trainer):
    """Trainer, except for what the module's first line says. One process behaves as under Trainer, step for step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop_on_signal = StopOnSignal()
        self.add_callback(self.stop_on_signal)

    # Rows

    def get_train_dataloader(self) -> DataLoader:
        dataset: Any = self.train_dataset
        grouped = self.args.train_sampling_strategy == "group_by_length"
        shared = self.args.world_size > 1 and self._can_share
        drop_last = bool(self.args.dataloader_drop_last)
        if isinstance(dataset, StreamedRowDataset) and not grouped:
            return self._stream_loader(dataset, self.args.train_batch_size, drop_last=drop_last)
        if not grouped and (not shared or isinstance(dataset, IterableDataset)):
            return _with_deaf_workers(super().get_train_dataloader())
        return self._loader(dataset, self._rows(dataset, grouped), self.args.train_batch_size, drop_last=drop_last)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, StreamedRowDataset):
            return self._stream_loader(dataset, self.args.eval_batch_size, drop_last=False)
        shared = self.args.world_size > 1 and self._can_share and isinstance(dataset, Dataset)
        if not shared or isinstance(dataset, IterableDataset):
            return _with_deaf_workers(super().get_eval_dataloader(eval_dataset))
        return self._loader(dataset, SequentialSampler(dataset), self.args.eval_batch_size, drop_last=False)

    @property
    def _can_share(self) -> bool:
        # Contrastive batches, say, have to be full on every rank; accelerate fills the last ones up with the first rows.
        return getattr(self.data_collator, "takes_no_rows", False)

    def _rows(self, dataset: Any, grouped: bool) -> Sampler[int]:
        from accelerate.data_loader import SeedableRandomSampler

        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if self.args.train_sampling_strategy == "sequential":
            return SequentialSampler(dataset)
        if not grouped:
            # The order of one process, so that the number of ranks does not change which rows a step has.
            return SeedableRandomSampler(dataset, data_seed=seed)
        rank, processes = self.args.process_index, self.args.world_size
        lengths, has_image = lengths_and_modalities(dataset, rank, processes)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * processes
        return GroupedRows(lengths, has_image, batch, seed)

    def _loader(self, dataset: Any, rows: Sampler[int], batch_size: int, *, drop_last: bool) -> DataLoader:
        batches = BatchSampler(rows, batch_size, drop_last=drop_last)
        share = RankBatches(batches, self.args.process_index, self.args.world_size, drop_last=drop_last)
        return self._reader(dataset, batch_sampler=share)

    def _stream_loader(self, dataset: Any, batch_size: int, *, drop_last: bool) -> DataLoader:
        rank, processes = self.args.process_index, self.args.world_size
        return self._reader(StreamedBatches(dataset, batch_size, rank, processes, drop_last=drop_last), batch_size=None)

    def _reader(self, dataset: Any, **batches: Any) -> DataLoader:
        workers = self.args.dataloader_num_workers
        loader: DataLoader = DataLoader(
            dataset,
            **batches,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            multiprocessing_context=self.args.dataloader_multiprocessing_context if workers else None,
            worker_init_fn=partial(seed_worker, num_workers=workers, rank=self.args.process_index),
        )
        return _with_deaf_workers(loader)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        self.stop_on_signal.exchange(self.accelerator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As in Trainer; a checkpoint counts from its last file on, and older ones go only after that."""
        run_dir = Path(self._get_output_dir(trial=trial))
        folder = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            unmark(folder)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with disk_full_explained(folder):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    facts = {"processes": self.args.world_size, "global_batch": global_batch(self.args)}
                    mark_whole(folder, sharding=sharding(self.args), **facts)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(run_dir), save_total_limit=limit, best_model_checkpoint=best, use_mtime=True)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """As in Trainer, after a look at the tensors: ZeRO-3 leaves empty ones where a gather was missed."""
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            check_tensors(model.state_dict() if state_dict is None else state_dict)
        super()._save(output_dir, state_dict=state_dict)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:
            self.stop_on_signal.restore()


def _with_deaf_workers(loader: DataLoader) -> DataLoader:
    """The loader, with workers that a stop signal to the whole job does not end."""
    end_workers_at_exit()
    inner = getattr(loader, "base_dataloader", loader)  # accelerate's wrapper reads from the one inside
    inner.worker_init_fn = partial(ignore_in_worker, init=inner.worker_init_fn)
    return loader


def check_tensors(tensors: dict[str, Tensor]) -> None:
    """Stops a save that would write a model nobody can load.

    Raises:
        ValueError: no tensors, or empty ones, with their names.
    """
    empty = sorted(name for name, tensor in tensors.items() if tensor.numel() == 0)
    if tensors and not empty:
        return
    listed = (
        f"{len(empty)} of {len(tensors)} tensors are empty ({', '.join(empty[:4])}{', …' if len(empty) > 4 else ''})"
    )
    raise ValueError(
        f"Nothing was saved: {listed if tensors else 'there are no tensors'}. Under ZeRO-3 the shards are gathered by "
        "zero_optimization.stage3_gather_16bit_weights_on_model_save: true."
    )
