"""A data set's images as the model sees them: framed squares, where their content lies, masks."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from busray.data.framing import content_box, frame, frame_mask
from busray.data.pixels import READ_THREADS, lesion_mask, read_grey
from busray.records import ContentBox, DataSet, SourceImage


@dataclass(frozen=True)
class Images:
    """Real images as the model sees them, n of side s."""

    pixels: np.ndarray  # uint8 [n, s, s]
    boxes: tuple[ContentBox, ...]  # where each image's content lies in its square
    labels: np.ndarray  # int64 [n]: the number of each image's class among ImageFolder.classes
    # str [n]: images of one unit (SourceImage.unit) count as one independent draw
    units: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Masks:
    """The lesions of n images of side s."""

    lesions: np.ndarray  # bool [n, s, s], framed as the images are
    known: np.ndarray  # bool [n]: False where an image has no mask, or one that cannot be used


@dataclass(frozen=True)
class ImageFolder:
    """The checked data set and the local folder that holds its files."""

    dataset: DataSet
    path: Path
    classes: tuple[str, ...]

    def load(self, images: Sequence[SourceImage]) -> Images:
        """Read and frame images, in their order. Raises whatever read_grey raises."""
        size = self.dataset.size

        def framed(image: SourceImage) -> np.ndarray:
            return frame(read_grey(self.path / image.path, image.frame), size, self.dataset.frame)

        with ThreadPoolExecutor(READ_THREADS) as pool:
            squares = list(pool.map(framed, images))
        return Images(
            pixels=np.array(squares, np.uint8).reshape(-1, size, size),
            boxes=self.boxes(images),
            labels=np.array([self.classes.index(image.class_name) for image in images], np.int64),
            units=np.array([image.unit for image in images], str),
        )

    def boxes(self, images: Sequence[SourceImage]) -> tuple[ContentBox, ...]:
        """Where the content of each image lies in its square. No file is read."""
        size, framing = self.dataset.size, self.dataset.frame
        return tuple(content_box(image.width, image.height, size, framing) for image in images)

    def masks(self, images: Sequence[SourceImage]) -> Masks:
        """Read and frame the masks of images; several masks of one image are joined.

        An empty mask says that there is no lesion, so it is known.
        """
        size = self.dataset.size

        def framed(image: SourceImage) -> np.ndarray | None:
            mask, problems = lesion_mask(self.path, image, (image.height, image.width))
            usable = all(problem == "empty" for _, problem in problems)
            if mask is None or not usable:
                return None
            return frame_mask(mask, size, self.dataset.frame)

        with ThreadPoolExecutor(READ_THREADS) as pool:
            squares = list(pool.map(framed, images))
        lesions, known = np.zeros((len(images), size, size), bool), np.zeros(len(images), bool)
        for i, square in enumerate(squares):
            if square is not None:
                lesions[i], known[i] = square, True
        return Masks(lesions, known)
