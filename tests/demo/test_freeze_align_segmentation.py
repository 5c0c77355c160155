"""Sheets have the masks that were drawn, and exchanged texts are measured beside the right ones."""

import json

import pytest
import torch
from PIL import Image

from vwlmm.demo.freeze_align_segmentation import SIDE, draw, make_sheets, segment

COLOURS = {"animals": "red", "food": "lime", "plants": "blue", "space": "black", "town": "yellow"}


class SeesColours:
    """A stand-in for a trained pair: patches and category names are colours; white is like none."""

    def embed_texts(self, texts):
        names = [next(name for name in COLOURS if text.endswith(name)) for text in texts]
        return torch.eye(len(COLOURS) + 1)[[list(COLOURS).index(name) for name in names]]

    def embed_patches(self, images, *, cls_residual=True):
        colours = {Image.new("RGB", (1, 1), colour).getpixel((0, 0)): i for i, colour in enumerate(COLOURS.values())}
        small = [image.resize((16, 16), Image.Resampling.NEAREST) for image in images]
        return torch.stack(
            [
                torch.eye(len(COLOURS) + 1)[
                    torch.tensor(
                        [[colours.get(image.getpixel((c, r)), len(COLOURS)) for c in range(16)] for r in range(16)]
                    )
                ]
                for image in small
            ]
        )


@pytest.fixture
def data(tmp_path):
    (tmp_path / "images").mkdir()
    rows = []
    for name, colour in COLOURS.items():
        picture = Image.new("RGB", (56, 56), "white")
        picture.paste(Image.new("RGB", (28, 56), colour), (0, 0))
        picture.save(tmp_path / f"images/{name}.png")
        rows.append({"image": f"images/{name}.png", "category": name})
    (tmp_path / "stamps.json").write_text(json.dumps(rows))
    return tmp_path


def test_a_sheet_has_four_categories_and_the_mask_of_what_is_drawn(data):
    for sheet in make_sheets(data, ["stamps"], list(COLOURS), 3):
        assert sheet.picture.size == (2 * SIDE, 2 * SIDE)
        labels = sheet.mask.unique().tolist()
        assert len(labels) == 5
        for label in labels[1:]:
            # Half of each stamp is drawn; its edge is smoothed.
            assert int((sheet.mask == label).sum()) == pytest.approx(SIDE * SIDE / 2, rel=0.1)
    with pytest.raises(ValueError, match="4 categories, found 2"):
        make_sheets(data, ["stamps"], ["animals", "food"], 1)


def test_a_pair_that_sees_is_far_above_the_same_pair_with_exchanged_texts(data, tmp_path):
    pair, sheets = SeesColours(), make_sheets(data, ["stamps"], list(COLOURS), 4)
    result = segment(pair, sheets, list(COLOURS))
    assert result["pair"]["miou"] > 0.4
    assert result["pair"]["script_mean"] > 0.8
    assert result["categories exchanged"]["paper"] < 0.1
    draw(pair, sheets[:2], list(COLOURS), tmp_path / "sheets.png")
    assert (tmp_path / "sheets.png").read_bytes().startswith(b"\x89PNG")
