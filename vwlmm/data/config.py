"""The `data` section of a recipe: where the rows are and how they are read. Checked before anything is opened."""

from dataclasses import dataclass

from vwlmm.data.images import MAX_PIXELS
from vwlmm.data.shards import is_sharded


@dataclass
class DataConfig:
    """Where the rows are and how they are read."""

    path: (
        str  # .json, .jsonl or .parquet file, folder, name of a dataset, or shards: {00000..00331}.tar, part-*.parquet
    )
    images: str | None = None  # folder that relative image paths start from; None: the folder of the file
    split: str | None = None  # of a dataset; None: train
    max_length: int = 2048  # tokens, image tokens included; LLaVA-1.5
    padding_free: bool = False  # rows of a batch behind one another in one sequence, none sees another: the same losses
    streaming: bool = False  # read in order, without an index; for sources larger than the disk
    # stop, or quarantine: leave the row out and list it in quarantine.jsonl; None: quarantine for shards, else stop
    on_bad_row: str | None = None
    validation_path: str | None = None  # a file or dataset of its own; the same name as `path`: its `validation` split
    validation_split: float | int = 0  # or a part of `path`: a fraction below 1, or a number of rows
    max_rows: int | None = None  # only the first rows of `path`, before any split
    num_workers: int = 2  # processes that open images
    max_pixels: int = MAX_PIXELS  # width × height above this is a bad row and never decoded
    chat_template: str | None = None  # vicuna_v1, mistral, llama_2, chatml, plain or Jinja; None: the processor's own

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("data.path is a file, a folder or a dataset's name: got an empty one.")
        if self.on_bad_row is None:
            # Shards are fetched from the web, and there is always one that broke on the way.
            self.on_bad_row = "quarantine" if is_sharded(self.path) else "stop"
        if self.on_bad_row not in ("stop", "quarantine"):
            raise ValueError(f"data.on_bad_row is stop or quarantine: got {self.on_bad_row!r}.")
        for name, least in (("max_length", 1), ("max_pixels", 1), ("num_workers", 0), ("max_rows", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ValueError(f"data.{name} is a whole number of at least {least}: got {value!r}.")
        part = self.validation_split
        if isinstance(part, bool) or not isinstance(part, (int, float)) or part < 0:
            raise ValueError(f"data.validation_split is a fraction or a number of rows, at least 0: got {part!r}.")
        if isinstance(part, float) and part >= 1:
            raise ValueError(f"data.validation_split: a fraction lies below 1, got {part}. For rows give {int(part)}.")
        if part and self.validation_path:
            raise ValueError("data: validation_path and validation_split are two ways to say the same: give one.")
        if part and self.streaming:
            raise ValueError(
                "data.validation_split needs to know how many rows there are, which streaming does not: "
                "give validation_path, or set streaming: false."
            )
