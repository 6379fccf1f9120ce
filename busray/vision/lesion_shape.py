"""Measures of a lesion from its mask: whether there is one, its area, aspect and ellipticity.

Pure: masks in, numbers out. Where a mask has several lesions, the largest one is measured. Under
the framing `stretch` an aspect is that of the stretched image, of generated and real images alike.
"""

from collections.abc import Sequence

import numpy as np

from busray.data.annotations import components
from busray.records import ContentBox

# Extractor of measures from a segmenter's masks. Another definition needs another name.
NAME = "segmenter-1"
TRUE = "masks"  # extractor of measures from the data set's own masks
MEASURES = ("area", "aspect", "ellipticity")
COLUMNS = ("found", *MEASURES)
# Share of the content below which an area is no lesion: BUSI's smallest has 2.9e-3.
SPECK = 1e-3


def measures(masks: np.ndarray, boxes: Sequence[ContentBox]) -> np.ndarray:
    """Masks bool [n, s, s] and the images' content boxes -> float64 [n, 4], columns as in COLUMNS.

    - found: 1 where there is a lesion, else 0, and the other columns are NaN.
    - area: share of the content box that the largest 8-connected area covers.
    - aspect: its height over its width, as the ratio of the standard deviations of its pixels
      down and across. For an ellipse, turned or not, this is the aspect of its bounding box, but a
      stray pixel hardly changes it. Above 1 the lesion is taller than wide, a sign of malignancy
      (Stavros et al. 1995, doi 10.1148/radiology.196.1.7862998; ACR BI-RADS: not parallel).
    - ellipticity: the square of its area over that of the ellipse with the same second moments;
      1 for an ellipse, less for any other shape (Rosin 2003, doi 10.1007/s00138-002-0118-6).
    """
    table = np.full((len(masks), len(COLUMNS)), np.nan)
    for row, mask, box in zip(table, masks, boxes, strict=True):
        areas = components(mask)
        ys, xs = max(areas, key=lambda area: len(area[0]), default=(np.zeros(0), np.zeros(0)))
        area = len(ys) / (box.width * box.height)
        row[0] = area >= SPECK
        if row[0]:
            row[1:] = area, *_shape(ys, xs)
    return table


def _shape(ys: np.ndarray, xs: np.ndarray) -> tuple[float, float]:
    """(aspect, ellipticity) of the pixels at these rows and columns."""
    # A pixel is a square of side 1, whose own variance along an axis is 1 / 12.
    down, side = ys.var() + 1 / 12, xs.var() + 1 / 12
    ellipse = 4 * np.pi * np.sqrt(down * side - np.cov(ys, xs, bias=True)[0, 1] ** 2)
    return float(np.sqrt(down / side)), float((len(ys) / ellipse) ** 2)


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 [h, w] with a white line around the mask bool [h, w]."""
    wide = np.pad(mask, 1)
    near = wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return np.where(near & ~mask, 255, image).astype(np.uint8)
