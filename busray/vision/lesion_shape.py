"""Lesions as masks show them: is there one, how large, how tall, how near to an ellipse; and what that says of an arm.

Drawn images have no masks but a segmenter's (pseudo-masks), which errs. So real held-out images are measured the same
way, and stand once more by their true masks beside it, so that the segmenter's own bias is seen. Figures are a class's
only: arms and real images have other shares of each class, so a mean over all would compare these.

Pure: masks and numbers in, records and text out. Of several lesions the largest is measured. Under the frame `stretch`
aspects are those of the stretched images, drawn and real alike.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from busray.data.annotations import components
from busray.evidence.stats.samples import FEWEST
from busray.records import ContentBox

NAME = "segmenter-1"
"""Extractor of what pseudo-masks measure. Another network or definition of a measure is another number."""


TRUE = "masks"
"""Extractor of what the data set's own masks measure."""


MEASURES = ("area", "aspect", "ellipticity")


COLUMNS = ("found", *MEASURES)


SPECK = 1e-3
"""Share of the content below which an area is no lesion: BUSI's smallest has 2.9e-3."""


def measures(masks: np.ndarray, boxes: Sequence[ContentBox]) -> np.ndarray:
    """bool [n, s, s] and where each image's content lies -> float64 [n, 4], columns as in COLUMNS.

    found: 1 or 0. Of the largest 8-connected area, NaN where nothing is found: area, its share of the content box;
    aspect, height over width, as the ratio of its standard deviations downwards and sideways: for an ellipse, turned
    or not, that of its bounding box, but a stray pixel does not change it. Above 1 is taller than wide, a sign of
    malignancy (Stavros et al. 1995, doi 10.1148/radiology.196.1.7862998; ACR BI-RADS: orientation not parallel).
    ellipticity: its area over that of the ellipse with its second moments, squared: 1 for an ellipse, less for any
    other shape (Rosin 2003, doi 10.1007/s00138-002-0118-6).
    """
    found = np.full((len(masks), len(COLUMNS)), np.nan)
    for row, mask, box in zip(found, masks, boxes, strict=True):
        ys, xs = max(components(mask), key=lambda c: len(c[0]), default=(np.zeros(0), np.zeros(0)))
        share_of_units = len(ys) / (box.width * box.height)
        row[0] = share_of_units >= SPECK
        if row[0]:
            row[1:] = share_of_units, *_shape(ys, xs)
    return found


def _shape(ys: np.ndarray, xs: np.ndarray) -> tuple[float, float]:
    """(aspect, ellipticity) of pixels, each a square of side 1: hence the twelfth, the variance within one."""
    down, side = ys.var() + 1 / 12, xs.var() + 1 / 12
    ellipse = 4 * np.pi * np.sqrt(down * side - np.cov(ys, xs, bias=True)[0, 1] ** 2)
    return float(np.sqrt(down / side)), float((len(ys) / ellipse) ** 2)


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 [h, w] with a white line around the mask bool [h, w]."""
    wide = np.pad(mask, 1)
    near = wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return np.where(near & ~mask, 255, image).astype(np.uint8)


def unmeasurable(masks: Mapping[str, np.ndarray]) -> str | None:
    """Why masks bool [n, s, s] by split allow no figure; None where they do."""
    for split, found in masks.items():
        if (n := int(found.any((1, 2)).sum())) < FEWEST:
            return f"{n} {split} images have a mask with a lesion, and {FEWEST} are needed (files NAME_mask.png)"
    return None
