"""Benchmarks while a model trains: answered every so many steps, scored by their own rules, logged where the losses are.

evaluation: {benchmark: embedded_vqa, limit: 200, every: 100}        # a section of the recipe
"""

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from vwlmm.benchmarks import Answer, Benchmark, Files
from vwlmm.benchmarks.official_files import check_images
from vwlmm.evaluation.engines import all_at_once, answer, check_model
from vwlmm.evaluation.generation import Pictures
from vwlmm.evaluation.runner import Asked, LoadedModel, read_questions
from vwlmm.evaluation.settings import EvaluationConfig, ValidationConfig
from vwlmm.evaluation.suite import read_names


class BenchmarkCallback(TrainerCallback):
    """Asks the model benchmarks every `config.every` steps and at the end, and logs `eval_NAME_METRIC`.

    The answers are greedy and draw no random numbers: training is the same with and without it. Of several processes
    each answers its share.

    Args:
        trainer: an `ObjectiveTrainer`, whose `log` reaches every tracker.
        processor: the model's.
        config: the recipe's `evaluation` section.

    Raises:
        ValueError, FileNotFoundError: the benchmark's files or pictures are not as they should be; found before the
            first step.
    """

    def __init__(self, trainer: Any, processor: Any, config: ValidationConfig) -> None:
        if trainer.is_fsdp_enabled:
            raise ValueError("evaluation: benchmarks during training need DDP, DeepSpeed or one process, not FSDP.")
        self.trainer, self.processor, self.config = trainer, processor, config
        self.asked: list[tuple[Benchmark, Files, Asked]] = []
        for entry in read_names(config.names):
            check_model(trainer.base_model, entry.benchmark)
            files = entry.benchmark.files(self._data(entry.benchmark))
            questions = read_questions(entry.benchmark, files, processor, config.limit)
            check_images(questions.questions, files.images)
            self.asked.append((entry.benchmark, files, questions))
        self.metrics: dict[str, float] = {}  # the last ones
        self.last_step = -1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.config.every == 0:
            self.evaluate(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != self.last_step:
            self.evaluate(state.global_step)

    def evaluate(self, step: int) -> dict[str, float]:
        """Asks all benchmarks now, logs and returns their metrics; those of subsets (with a slash) are left out."""
        began = time.perf_counter()
        model = self.trainer.base_model
        was_training = model.training
        model.eval()
        try:
            self.metrics = {}
            for benchmark, files, asked in self.asked:
                answers = {str(line["question_id"]): line for line in self._answers(benchmark, files, asked)}
                score = benchmark.score(
                    asked.questions, {question.id: answers[question.id] for question in asked.questions}
                )
                for name, value in score.metrics.items():
                    if "/" not in name:
                        self.metrics[f"eval_{benchmark.name}_{name}"] = float(value)
        finally:
            model.train(was_training)
        self.last_step = step
        self.trainer.leave_out(time.perf_counter() - began)
        self.trainer.log(dict(self.metrics))
        return self.metrics

    def _answers(self, benchmark: Benchmark, files: Files, asked: Asked) -> list[Answer]:
        """All answers, on every rank."""
        accelerator = self.trainer.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        # Under ZeRO-3 ranks run the same modules in the same order, which questions with and without pictures do not:
        # there every rank answers all.
        shared = world > 1 and not all_at_once(benchmark) and not is_deepspeed_zero3_enabled()
        places = asked.chosen
        if shared:
            places = asked.chosen[rank::world]
        pictures = Pictures(files.images, self.config.num_loaders)
        try:
            lines = [
                line
                for batch in answer(
                    self._loaded(),
                    benchmark,
                    [asked.all[place] for place in places],
                    [asked.texts[place] for place in places] if asked.texts else [],
                    pictures,
                    EvaluationConfig(batch_size=self.config.batch_size, max_new_tokens=self.config.max_new_tokens),
                    autocast=self.trainer.compute_loss_context_manager,
                )
                for line in batch
            ]
        finally:
            pictures.close()
        if not shared:
            return lines
        from accelerate.utils import gather_object

        return list(gather_object(lines))

    def _loaded(self) -> LoadedModel:
        model = self.trainer.base_model
        return LoadedModel(model, self.processor, "training", {}, has_words=hasattr(model, "vm_head"))

    def _data(self, benchmark: Benchmark) -> Path:
        data = self.config.data or benchmark.default_data
        if data is None:
            raise ValueError(f"evaluation.data: {benchmark.name} reads official files: say in which folder they are.")
        return Path(data)
