"""Images side by side in one PNG with labels, for people."""

import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


def contact_sheet(
    rows: Sequence[Sequence[bytes | None]], labels: Sequence[str], scale: int = 1, row_labels: Sequence[str] = ()
) -> bytes:
    """A grey PNG of a grid of PNGs, each pixel scale x scale.

    labels are above the columns, row_labels at the left. Cells are as large as the largest image,
    or wider if a label needs it; missing ones stay white.
    """
    images = [[_open(cell) if cell else None for cell in row] for row in rows]
    font = ImageFont.load_default(8 + 6 * scale)
    gap, line = 4 * scale, 2 * (8 + 6 * scale)
    sizes = [image.size for row in images for image in row if image]
    label_width = max((math.ceil(font.getlength(label)) for label in labels), default=0)
    width = max(scale * max((w for w, _ in sizes), default=0), label_width)
    height = scale * max((h for _, h in sizes), default=0)
    left = max((math.ceil(font.getlength(label)) + 2 * gap for label in row_labels), default=0)
    top = line if any(labels) else 0
    columns = max([len(labels), *map(len, rows)])
    sheet = Image.new("L", (left + gap + columns * (width + gap), top + gap + len(rows) * (height + gap)), 255)
    draw = ImageDraw.Draw(sheet)
    for i, label in enumerate(labels):
        draw.text((left + gap + i * (width + gap) + width / 2, top / 2 + gap / 2), label, 40, font, anchor="mm")
    for j, row in enumerate(images):
        y = top + gap + j * (height + gap)
        if j < len(row_labels):
            draw.text((left - gap, y + height / 2), row_labels[j], 40, font, anchor="rm")
        for i, image in enumerate(row):
            if image:
                x = left + gap + i * (width + gap) + (width - scale * image.width) // 2
                large = image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)
                sheet.paste(large, (x, y))
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    return buffer.getvalue()


def _open(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        return image.convert("L")
