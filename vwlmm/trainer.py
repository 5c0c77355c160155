"""transformers' Trainer with an objective: one global normaliser, a learning rate a module, terms and speed in the log."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput

from vwlmm.distributed_trainer import DistributedTrainer
from vwlmm.flops import StepFlops, peak_flops
from vwlmm.loading import load_model
from vwlmm.models import DualEncoderModel
from vwlmm.models.checksums import write_checksums
from vwlmm.trainable import LearningRates


class ObjectiveTrainer(DistributedTrainer):
    """Trains `model(**batch, objective=objective)`.

    The loss of accumulated micro-batches on several ranks is the loss of the one large batch: every term is divided by
    its count over all of them. Logged beside the loss: each term by name, tokens/s, images/s, TFLOP/s, and MFU where the
    accelerator's peak is known.

    Args:
        objective: an objective of `vwlmm.objectives`.
        rates: from `vwlmm.trainable`.
    """

    def __init__(self, *args: Any, objective: Any, rates: LearningRates, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective: Any = objective
        self.rates = rates
        self.benchmarks: Any = None  # the callback that measures them while the run trains, if the recipe asks
        self.loss_is_scaled_for_ga = True
        self._terms = _Sums()
        self._work = _Sums()
        self._evaluated: _Sums | None = None
        self._since = time.perf_counter()
        self._steps = 0  # since the last log line; a resumed run begins in the middle
        inner = self.accelerator.unwrap_model(self.model)
        self.has_adapters = hasattr(inner, "get_base_model")
        self.base_model = inner.get_base_model() if self.has_adapters else inner
        # Of a pair of encoders nothing is counted: its towers may not even run, when features come from a cache.
        self._flops = None if isinstance(self.base_model, DualEncoderModel) else StepFlops(self.base_model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            learner: Any = self.model if model is None else model
            groups = self.rates.groups(learner, self.get_decay_parameter_names(learner), self.args.weight_decay)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, learner)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """The micro-batches of one step, each told how many rows of every term the whole step has."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._steps += 1
            counts = [self.base_model.count_items(batch, self.objective) for batch in batches]
            names = sorted(counts[0])
            totals = torch.stack([torch.stack([count[name] for name in names]) for count in counts]).sum(0)
            totals = self.accelerator.gather(totals.to(device).unsqueeze(0)).sum(0)
            for batch in batches:
                batch["num_items"] = dict(zip(names, totals, strict=True))
        return batches, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        outputs = model(**inputs, objective=self.objective)
        self._terms.add(outputs.terms)
        images = inputs.get("pixel_values", inputs.get("vision_features"))
        own = self.base_model.count_items(inputs, self.objective)
        rows, tokens = _rows_and_tokens(inputs)
        self._work.add(
            {
                "tokens": tokens,
                "rows": rows,
                "images": torch.tensor(0 if images is None else len(images)),
                **{f"items_{name}": count for name, count in own.items()},
            }
        )
        # Ranks' gradients are averaged; the terms are already divided by the counts of all ranks.
        loss = outputs.loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        inputs = self._prepare_inputs(inputs)
        counts = self.base_model.count_items(inputs, self.objective)
        with torch.no_grad(), self.compute_loss_context_manager():
            one = {name: torch.ones_like(count) for name, count in counts.items()}
            outputs = model(**inputs, objective=self.objective, num_items=one)
        if self._evaluated is not None:
            self._evaluated.add(outputs.terms)
            self._evaluated.add({f"items_{name}": count for name, count in counts.items()})
        return outputs.loss.detach().float() / max(1, sum(int(count) for count in counts.values())), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As in Trainer, with every term as a mean over all scored rows of the set, and the loss made of those."""
        self._evaluated = _Sums()
        output: Any = super().evaluation_loop(*args, **kwargs)
        sums = self._evaluated.reduce(self.accelerator)
        self._evaluated = None
        prefix = kwargs.get("metric_key_prefix", "eval")
        counted = {
            name: value / max(1.0, sums[f"items_{self.objective.counted_by(name)}"])
            for name, value in sums.items()
            if not name.startswith("items_")
        }
        metrics = {f"{prefix}_{name}": value for name, value in counted.items()}
        metrics[f"{prefix}_loss"] = self.objective.weigh(counted)
        output.metrics.update(metrics)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            steps, self._steps = max(1, self._steps), 0
            logs |= {name: value / steps for name, value in self._terms.reduce(self.accelerator).items()}
            logs |= self._speed()
        super().log({name: _rounded(value) for name, value in logs.items()}, start_time)

    def read_work(self) -> dict[str, float]:
        """Tokens, rows, images and scored rows of all ranks since this was last read."""
        return self._work.reduce(self.accelerator)

    def leave_out(self, seconds: float) -> None:
        """Time spent on something else than training, such as a benchmark; the logged speeds do not count it."""
        self._since += seconds

    def _speed(self) -> dict[str, float]:
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        work = self.read_work()
        speed = {
            "tokens_per_second": work.get("tokens", 0) / seconds,
            "images_per_second": work.get("images", 0) / seconds,
        }
        if self._flops is None:
            return speed
        flops = self._flops(
            tokens=int(work.get("tokens", 0)),
            rows=int(work.get("rows", 0)),
            images=int(work.get("images", 0)),
            num_items={name.removeprefix("items_"): int(n) for name, n in work.items() if name.startswith("items_")},
        )
        speed["tflops_per_second"] = flops / seconds / 1e12
        peak = peak_flops()
        if peak is not None:
            speed["mfu"] = flops / seconds / peak / self.accelerator.num_processes
        return speed

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Publishes the run's folder as `vwlmm publish` does: model, card, curves; no optimiser state, no paths of this machine.

        Returns the repository's address, on the first process; always waits for the upload.
        """
        from vwlmm.hub import PublishConfig, publish

        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        folder = Path(str(self.args.output_dir))
        self.state.save_to_json(str(folder / "trainer_state.json"))
        write_checksums(folder)
        config = PublishConfig(
            private=bool(self.args.hub_private_repo if private is None else private),
            revision=revision or self.args.hub_revision,
            message=commit_message or "Publish with vwlmm",
            model_only=True,
            token=token or self.args.hub_token,
        )
        return publish(folder, self.args.hub_model_id or folder.resolve().name, config)[0]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or self.has_adapters:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        # On disk the tensors have LLaVA's names, which from_pretrained turns into ours. Trainer would match none of them,
        # warn, and train on from the weights the run began with.
        if isinstance(self.base_model, DualEncoderModel):
            saved: Any = type(self.base_model).from_pretrained(resume_from_checkpoint)
        else:
            saved, _ = load_model(resume_from_checkpoint, device="cpu")
        self.base_model.load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or self.has_adapters:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _objective_file(self, folder: str) -> Path:
        return Path(folder) / f"objective_{self.args.process_index}.pt"

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self._objective_file(checkpoint).is_file():
            self.objective.load_state_dict(torch.load(self._objective_file(checkpoint), weights_only=True))

    def _save_rng_state(self, output_dir: str) -> None:
        # An objective that remembers past batches (VLAP's queue) goes on with them, on each rank with its own.
        state = self.objective.state_dict() if hasattr(self.objective, "state_dict") else {}
        if state:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            torch.save(state, self._objective_file(output_dir))
        super()._save_rng_state(output_dir)


def _rows_and_tokens(inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Of a padded batch by its mask; of one without padding by its positions, which begin at 0 in each row."""
    mask = inputs.get("attention_mask")
    if mask is not None:
        return torch.tensor(len(mask)), mask.sum()
    positions = inputs["position_ids"]
    return (positions == 0).sum(), torch.tensor(positions.numel())


class _Sums:
    """Running sums by name on their device; read once a log line, so that a step does not wait for the GPU."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().double()

    def reduce(self, accelerator: Any) -> dict[str, float]:
        """The sums over all ranks, and a fresh start."""
        names = sorted(self.sums)
        if not names:
            return {}
        own = torch.stack([self.sums[name].to(accelerator.device) for name in names])
        total = accelerator.gather(own.unsqueeze(0)).sum(0).tolist()
        self.sums = {}
        return dict(zip(names, total, strict=True))


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
