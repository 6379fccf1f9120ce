"""A data set's images as the model sees them: framed squares, where their content lies, masks."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from busray.data.framing import content_box, frame, frame_mask
from busray.data.pixels import READ_THREADS, by_file, lesion_mask, opened
from busray.identity import sha256_file
from busray.records import ContentBox, DataSet, SourceImage, UserError


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
    # mask -> SHA-256 of its file; a run that was begun before masks.json has none
    mask_digests: Mapping[str, str] = field(default_factory=dict[str, str])

    def load(self, images: Sequence[SourceImage]) -> Images:
        """Read and frame images, in their order. UserError where a file is not any more what the
        data set was made of; else whatever read_grey raises."""
        size = self.dataset.size

        def framed(of_file: Sequence[SourceImage]) -> dict[str, np.ndarray]:
            path, squares = self.path / of_file[0].path, {}
            with unchanged(path, of_file[0].sha256), opened(path, of_file[0].grey_bits) as decode:
                for image in of_file:
                    squares[image.file] = frame(decode(image.frame).grey, size, self.dataset.frame)
            return squares

        square_of: dict[str, np.ndarray] = {}
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for squares in pool.map(framed, by_file(images)):
                square_of |= squares
        return Images(
            pixels=np.array([square_of[image.file] for image in images], np.uint8).reshape(-1, size, size),
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

        An empty mask says that there is no lesion, so it is known. UserError where a mask is not
        any more what the run began with.
        """
        size = self.dataset.size

        def framed(image: SourceImage) -> np.ndarray | None:
            mask, problems = lesion_mask(self.path, image, (image.height, image.width))
            for file in image.masks:
                if file in self.mask_digests:
                    with unchanged(self.path / file, self.mask_digests[file]):
                        pass
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

    def digest_masks(self) -> dict[str, str]:
        """mask -> SHA-256 of its file, of all images; for masks.json."""
        files = sorted({file for image in self.dataset.split("all") for file in image.masks})
        with ThreadPoolExecutor(READ_THREADS) as pool:
            return dict(zip(files, pool.map(lambda file: sha256_file(self.path / file), files), strict=True))


@contextmanager
def unchanged(path: Path, digest: str) -> Iterator[None]:
    """UserError where, after the block read the file, its SHA-256 is not `digest`."""
    # Afterwards, so that a change while it is read is seen too. An error of a decoder says less
    # than that the file is another one.
    try:
        yield
    finally:
        try:
            now = sha256_file(path)
        except OSError as error:
            raise UserError(f"{path}: the run began with this file, and it cannot be read any more: {error}") from error
        if now != digest:
            raise UserError(
                f"{path}: the file was changed after the run began with it. Bring the old file back, or give "
                "another output"
            )
