"""Labelled test sets of zero-shot classification as they are published: which pictures, which class, what it is called.

One reader a layout. Sets without a list of test pictures (Caltech-101, EuroSAT, UCF-101 frames, ImageNetV2) are read as
folders, one a class, all pictures, as freeze-align's scripts do for Caltech-101 and SUN397.
"""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .official_files import read_text

_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


class Labelled(NamedTuple):
    """One picture: its name below the pictures' folder, the number of its class, its place in the official file."""

    image: str
    label: int
    where: str


@dataclass(frozen=True)
class LabelledSet:
    """Names of the classes in the order of their numbers, and the pictures."""

    class_names: list[str]
    pictures: list[Labelled]


@dataclass(frozen=True)
class Layout:
    """Where a set's official files lie in its folder, and how they are read."""

    read: Callable[[tuple[Path, ...], Path | None], LabelledSet]
    annotations: tuple[str, ...] = ()
    images: str = "."


def _folders(annotations: tuple[Path, ...], images: Path | None) -> LabelledSet:
    """One folder a class; the class is called as the folder is, and numbered in the order of names (or numbers)."""
    if images is None or not images.is_dir():
        raise ValueError(f"expected the folder of class folders (--images DIR), found {images or 'none'}")
    folders = [path for path in images.iterdir() if path.is_dir()]
    in_numbers = all(path.name.isdigit() for path in folders)
    folders.sort(key=lambda path: (int(path.name) if in_numbers else 0, path.name))
    pictures = [
        Labelled(f"{folder.name}/{name}", label, str(folder))
        for label, folder in enumerate(folders)
        for name in _pictures_in(folder)
    ]
    return LabelledSet([_spoken(folder.name) for folder in folders], pictures)


def _sun397(annotations: tuple[Path, ...], images: Path | None) -> LabelledSet:
    """`ClassName.txt` has a folder a line, as in `/a/abbey`."""
    folders = [line.strip().lstrip("/") for _, line in _lines(annotations[0])]
    if images is None:
        raise ValueError("expected the folder of pictures (--images DIR): SUN397 has no list of them")
    pictures = [
        Labelled(f"{folder}/{name}", label, str(images / folder))
        for label, folder in enumerate(folders)
        for name in _pictures_in(images / folder)
    ]
    return LabelledSet([_spoken(" ".join(folder.split("/")[1:])) for folder in folders], pictures)


def _food101(annotations: tuple[Path, ...], images: Path | None) -> LabelledSet:
    """`classes.txt` and `test.txt` with `class/number` lines."""
    classes = [line for _, line in _lines(annotations[0])]
    return _by_folder(annotations[1], classes, ".jpg")


def _dtd(annotations: tuple[Path, ...], images: Path | None) -> LabelledSet:
    """`labels/test1.txt` with `class/picture.jpg` lines."""
    classes = sorted({line.split("/")[0] for _, line in _lines(annotations[0])})
    return _by_folder(annotations[0], classes, "")


def _by_folder(path: Path, classes: list[str], suffix: str) -> LabelledSet:
    numbers = {name: label for label, name in enumerate(classes)}
    pictures = []
    for where, line in _lines(path):
        folder = line.split("/")[0]
        if folder not in numbers:
            raise ValueError(f"{where}: expected a picture of one of {len(classes)} classes, found class {folder!r}")
        pictures.append(Labelled(line + suffix, numbers[folder], where))
    return LabelledSet([_spoken(name) for name in classes], pictures)


def _pets(annotations: tuple[Path, ...], images: Path | None) -> LabelledSet:
    """`annotations/test.txt`: `Abyssinian_201 1 1 1`, picture and class from 1; the class is called as the picture is."""
    names: dict[int, str] = {}
    pictures = []
    for where, line in _lines(annotations[0]):
        if line.startswith("#"):
            continue
        fields = line.split(" ")
        label = _number(fields, 1, where) - 1
        name = fields[0].rpartition("_")[0]
        if names.setdefault(label, name) != name:
            raise ValueError(
                f"{where}: expected one name a class, found {name} and {names[label]} for class {label + 1}"
            )
        pictures.append(Labelled(fields[0] + ".jpg", label, where))
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{annotations[0]}: expected pictures of each class from 1 on, found classes {sorted(names)}")
    return LabelledSet([_spoken(names[label]) for label in range(len(names))], pictures)


def _aircraft(annotations: tuple[Path, ...], images: Path | None) -> LabelledSet:
    """`variants.txt` and `images_variant_test.txt` with `1514522 707-320` lines."""
    classes = [line for _, line in _lines(annotations[0])]
    numbers = {name: label for label, name in enumerate(classes)}
    pictures = []
    for where, line in _lines(annotations[1]):
        picture, _, name = line.partition(" ")
        if name not in numbers:
            raise ValueError(f"{where}: expected a variant of {annotations[0].name}, found {name!r}")
        pictures.append(Labelled(picture + ".jpg", numbers[name], where))
    return LabelledSet(classes, pictures)


def _cub(annotations: tuple[Path, ...], images: Path | None) -> LabelledSet:
    """`classes.txt`, `images.txt`, `image_class_labels.txt`, `train_test_split.txt`, each `number value` lines."""
    classes, names, labels, is_train = (
        {line.split(" ")[0]: (where, line.partition(" ")[2]) for where, line in _lines(path)} for path in annotations
    )
    pictures = []
    for number, (where, name) in names.items():
        if number not in labels or number not in is_train:
            raise ValueError(f"{where}: picture {number} has no class or no split in {annotations[2].parent}")
        label = _number([labels[number][1]], 0, labels[number][0]) - 1
        if not 0 <= label < len(classes):
            raise ValueError(f"{labels[number][0]}: expected a class from 1 to {len(classes)}, found {label + 1}")
        if is_train[number][1] == "0":
            pictures.append(Labelled(name, label, where))
    return LabelledSet([_spoken(name.partition(".")[2]) for _, name in classes.values()], pictures)


def _imagenet(annotations: tuple[Path, ...], images: Path | None) -> LabelledSet:
    """`LOC_synset_mapping.txt` (class folder, names) and `LOC_val_solution.csv` (picture, class and boxes)."""
    classes = [line.partition(" ") for _, line in _lines(annotations[0])]
    numbers = {folder: label for label, (folder, _, _) in enumerate(classes)}
    pictures = []
    rows = csv.reader(io.StringIO(read_text(annotations[1])))
    next(rows, None)
    for number, row in enumerate(rows, start=2):
        where = f"{annotations[1]}, line {number}"
        folder = row[1].split(" ")[0] if len(row) == 2 else ""
        if folder not in numbers:
            raise ValueError(f"{where}: expected a picture and its class of {annotations[0].name}, found {row}")
        pictures.append(Labelled(f"{row[0]}.JPEG", numbers[folder], where))
    return LabelledSet([names.split(",")[0] for _, _, names in classes], pictures)


def _flowers102(annotations: tuple[Path, ...], images: Path | None) -> LabelledSet:
    """`imagelabels.mat` and `setid.mat`; classes have numbers only, so their names come from the setting `class_names`."""
    labels = _matlab(annotations[0])["labels"].ravel()
    chosen = _matlab(annotations[1])["tstid"].ravel()
    pictures = [Labelled(f"image_{n:05d}.jpg", int(labels[n - 1]) - 1, f"{annotations[1]}, tstid") for n in chosen]
    return LabelledSet([str(label + 1) for label in range(int(labels.max()))], pictures)


def _cars(annotations: tuple[Path, ...], images: Path | None) -> LabelledSet:
    """`cars_meta.mat` and `cars_test_annos_withlabels.mat`."""
    names = [str(name[0]) for name in _matlab(annotations[0])["class_names"].ravel()]
    rows = _matlab(annotations[1])["annotations"].ravel()
    where = f"{annotations[1]}, annotations"
    pictures = [Labelled(str(row["fname"][0]), int(row["class"].ravel()[0]) - 1, where) for row in rows]
    return LabelledSet(names, pictures)


LAYOUTS: dict[str, Layout] = {
    "folders": Layout(_folders),
    "aircraft": Layout(_aircraft, ("data/variants.txt", "data/images_variant_test.txt"), "data/images"),
    "caltech101": Layout(_folders),
    "cars": Layout(_cars, ("devkit/cars_meta.mat", "cars_test_annos_withlabels.mat"), "cars_test"),
    "cub": Layout(_cub, ("classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt"), "images"),
    "dtd": Layout(_dtd, ("labels/test1.txt",), "images"),
    "eurosat": Layout(_folders),
    "flowers102": Layout(_flowers102, ("imagelabels.mat", "setid.mat"), "jpg"),
    "food101": Layout(_food101, ("meta/classes.txt", "meta/test.txt"), "images"),
    "imagenet": Layout(_imagenet, ("LOC_synset_mapping.txt", "LOC_val_solution.csv"), "val"),
    "imagenetv2": Layout(_folders),
    "pets": Layout(_pets, ("annotations/test.txt",), "images"),
    "sun397": Layout(_sun397, ("ClassName.txt",)),
    "ucf101": Layout(_folders),
}


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Place and text of every line that is not blank."""
    found = False
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            found = True
            yield f"{path}, line {number}", line.strip()
    if not found:
        raise ValueError(f"{path}, line 1: expected one entry a line, found an empty file")


def _number(fields: list[str], index: int, where: str) -> int:
    if len(fields) <= index or not fields[index].isdigit():
        raise ValueError(
            f"{where}: expected a class number, found {fields[index] if len(fields) > index else 'none'!r}"
        )
    return int(fields[index])


def _pictures_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of pictures, found none")
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
    if not names:
        raise ValueError(f"{folder}: expected pictures, found none")
    return names


def _spoken(name: str) -> str:
    return name.replace("_", " ").strip()


def _matlab(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        from scipy.io import loadmat
    except ImportError as problem:
        raise ImportError(f"{path.name} is a MATLAB file: pip install scipy") from problem
    return loadmat(path)
