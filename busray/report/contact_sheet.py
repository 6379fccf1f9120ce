"""Images side by side in one PNG with labels, for people."""

import io
import math
from collections.abc import Sequence
from itertools import chain

from PIL import Image, ImageDraw, ImageFont


def contact_sheet(
    rows: Sequence[Sequence[bytes | None]],
    labels: Sequence[str],
    scale: int = 1,
    row_labels: Sequence[str] = (),
) -> bytes:
    """A grey PNG of a grid of PNGs, each pixel scale x scale.

    labels are above the columns, row_labels at the left. Cells are as large as the largest image,
    or wider if a label needs it; missing ones stay white.
    """
    images = []
    for row in rows:
        images.append([_open(cell, scale) for cell in row])
    font_size, gap = 8 + 6 * scale, 4 * scale
    font = ImageFont.load_default(font_size)
    # Every cell is as large as the largest, so that images of a column can be compared.
    width = max((math.ceil(font.getlength(label)) for label in labels), default=0)
    height = 0
    for image in filter(None, chain.from_iterable(images)):
        width, height = max(width, image.width), max(height, image.height)
    left = max((math.ceil(font.getlength(label)) + 2 * gap for label in row_labels), default=0)
    top = 2 * font_size if any(labels) else 0
    columns = max([len(labels), *map(len, rows)])
    size = (left + gap + columns * (width + gap), top + gap + len(rows) * (height + gap))
    sheet = Image.new("L", size, 255)
    draw = ImageDraw.Draw(sheet)
    for i, label in enumerate(labels):
        middle = left + gap + i * (width + gap) + width / 2
        draw.text((middle, top / 2 + gap / 2), label, 40, font, anchor="mm")
    for j, row in enumerate(images):
        y = top + gap + j * (height + gap)
        if j < len(row_labels):
            draw.text((left - gap, y + height / 2), row_labels[j], 40, font, anchor="rm")
        for i, image in enumerate(row):
            if image:
                x = left + gap + i * (width + gap)
                sheet.paste(image, (x + (width - image.width) // 2, y))
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    return buffer.getvalue()


def _open(png: bytes | None, scale: int) -> Image.Image | None:
    if png is None:
        return None
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        # whole pixels: interpolation would hide what the model generated
        size = (scale * image.width, scale * image.height)
        return image.convert("L").resize(size, Image.Resampling.NEAREST)


def thumbnail(png: bytes, side: int) -> bytes:
    """A grey picture of at most side x side pixels as lossy WebP: a tenth of the bytes, for a first
    look. Whoever judges images looks at the PNG."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        small = image.convert("L")
        small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "webp", quality=80)
    return buffer.getvalue()
