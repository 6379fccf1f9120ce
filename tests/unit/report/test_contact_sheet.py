"""Contact sheets: pixels as they are, labels beside them."""

import io
from typing import Any

import numpy as np
from PIL import Image

from busray.report.contact_sheet import contact_sheet
from tests.support.figures import png


def sheet(*arguments: Any, **options: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(contact_sheet(*arguments, **options))))


def test_a_contact_sheet_shows_each_image_pixel_for_pixel() -> None:
    pixels = sheet([[png(10), png(20)], [png(30), None]], ["", ""])
    assert pixels.shape == (4 + 2 * 12, 4 + 2 * 12)
    assert (pixels[4:12, 4:12] == 10).all() and (pixels[4:12, 16:24] == 20).all() and (pixels[16:24, 4:12] == 30).all()
    assert (pixels[16:24, 16:24] == 255).all()


def test_a_contact_sheet_is_enlarged_by_whole_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "png")
    pixels = sheet([[buffer.getvalue()]], [""], scale=3)
    assert pixels.shape == (12 + 36, 12 + 36)
    assert (pixels[12:36, 12:36] == noise.repeat(3, 0).repeat(3, 1)).all()


def test_labels_stand_above_and_at_the_left_and_never_on_an_image() -> None:
    rows = [[png(0, 64), png(0, 64)]]
    bare, labelled = sheet(rows, ["", ""]), sheet(rows, ["real", "drawn"], row_labels=["benign"])
    top, left = (after - before for after, before in zip(labelled.shape, bare.shape, strict=True))
    assert (labelled[top:, left:] == bare).all()
    assert labelled[:top].min() < 128 and labelled[top:, :left].min() < 128


def test_a_label_wider_than_its_images_widens_the_column() -> None:
    assert sheet([[png(0)]], ["a label far wider than eight pixels"]).shape[1] > 100


def test_the_same_images_give_the_same_sheet() -> None:
    arguments = ([[png(1), None]], ["a", "b"], 2, ["c"])
    assert contact_sheet(*arguments) == contact_sheet(*arguments)
