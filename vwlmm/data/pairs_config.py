"""The `data` section of a recipe that learns from pictures with captions. Checked before anything is opened."""

from dataclasses import dataclass

from vwlmm.data.images import MAX_PIXELS

AUGMENTATIONS = ("none", "freeze_align")


@dataclass
class PairDataConfig:
    """Where the pairs are and how they are read."""

    path: str  # .json, .jsonl, .csv, .parquet or webdataset .tar; several by a pattern (shards/*.tar), or a dataset's name
    images: str | None = None  # folder that relative image paths start from; None: the folder of the file
    image_column: str = "image"  # a path, or the picture's bytes
    caption_column: str = "caption"
    split: str | None = None  # of a dataset; None: train
    validation_path: str | None = None  # pairs that are not trained on: their loss and retrieval are measured
    max_length: int = 77  # tokens of a caption; longer ones are cut
    image_size: int | None = None  # side in pixels; None: as the vision tower's image processor says
    augmentation: str = "none"  # or freeze_align: crop, flip and RandAugment(2, 7), as published
    on_bad_row: str = "stop"  # stop, or quarantine: leave the pair out and list it in quarantine.jsonl
    cache: str | None = None  # folder for the frozen towers' features: made once, read ever after
    cache_dtype: str = "float32"  # of the features on disk: float32, bfloat16 or float16
    max_rows: int | None = None  # only the first pairs of `path`
    num_workers: int = 2  # processes that open pictures
    max_pixels: int = MAX_PIXELS  # width × height above this is a bad row and never decoded
    streaming: bool = False  # pairs are found by number, also in tar shards; kept for the trainer

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("data.path is a file, a pattern of files or a dataset's name: got an empty one.")
        for name, known in (
            ("augmentation", AUGMENTATIONS),
            ("on_bad_row", ("stop", "quarantine")),
            ("cache_dtype", ("float32", "bfloat16", "float16")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"data.{name} is one of {', '.join(known)}: got {getattr(self, name)!r}.")
        for name, least in (
            ("max_length", 1),
            ("image_size", 1),
            ("max_pixels", 1),
            ("num_workers", 0),
            ("max_rows", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"data.{name} is a whole number of at least {least}: got {value!r}.")
        if self.streaming:
            raise ValueError(
                "data.streaming: pairs are found by number, in tar shards too, and nothing is held: leave it out."
            )
        if self.cache and self.augmentation != "none":
            raise ValueError(
                "data.cache keeps one feature of every picture, and augmentation makes a new picture every time: leave out one "
                "of the two."
            )
