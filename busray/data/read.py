"""Reading a folder of labelled images: one sub-folder per class, masks beside images as in BUSI.

Nothing here judges the images; check.py does. folder.py knows names, masks.py finds masks,
pixels.py reads a file, metadata.py the table.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from busray.config import Dataset
from busray.data.account import Account, FileUse
from busray.data.folder import (
    IMAGE_SUFFIXES,
    Candidate,
    Classes,
    Layout,
    Side,
    lay_out,
    shown,
)
from busray.data.folder import class_names as class_names
from busray.data.levels import Deep
from busray.data.masks import Masks, find_masks
from busray.data.metadata import metadata_rows
from busray.data.patients import SIMULATED, Patients, with_patients
from busray.data.pixels import READ_THREADS, Picture, Unreadable, describe, describe_frames, kind_of
from busray.data.pixels import read_grey as read_grey  # programs of users import it from here
from busray.records import SourceImage, UserError


@dataclass(frozen=True)
class FolderScan:
    """What a folder holds."""

    images: tuple[SourceImage, ...]  # readable images, sorted by file
    unreadable: tuple[tuple[str, str], ...]  # (file, reason)
    stray_masks: tuple[str, ...]  # masks without an image
    root: Path = Path()  # the folder that files are relative to
    account: Account = field(default_factory=Account)
    # file -> the split that its folder says, with dataset.split=folders
    sides: dict[str, Side] = field(default_factory=dict[str, Side])
    odd: tuple[tuple[str, str], ...] = ()  # (file, what is odd about its grey levels)
    flat: tuple[str, ...] = ()  # images whose pixels are all equal, so that they show nothing
    patients: Patients = field(default_factory=Patients)


def scan(folder: Path, classes: Classes, metadata: Path | None = None, settings: Dataset | None = None) -> FolderScan:
    """Read every image of the classes' folders once, and account for every file.

    classes: class -> its folder, or names of classes, or None: all folders of images.
    metadata: CSV with the column `file` (relative to folder), optionally `group` (images of one
    patient share it), and any others. Spaces around names and values do not count.
    UserError for a missing folder, an unusable name or file, a wrong metadata file, and where it
    is not clear which files are masks.
    """
    settings = settings or Dataset()
    layout = lay_out(folder, classes, settings)
    files = [one.file for one in layout.candidates if not _named_as_mask(one)]
    rows = metadata_rows(metadata, layout.root, files) if metadata else {}
    return _Reader(layout, settings).scan(metadata, rows)


class _Reader:
    """Looks into the files of a layout, into each once."""

    def __init__(self, layout: Layout, settings: Dataset) -> None:
        self.layout, self.settings = layout, settings
        self.looked: dict[str, Picture | Unreadable] = {}
        self.uses: list[FileUse] = []
        self.odd: list[tuple[str, str]] = []
        self.flat: list[str] = []
        self.deep: dict[str, Deep] = {}  # file -> its grey of unknown bits
        self.who: dict[str, tuple[str, str]] = {}  # file -> PatientID and study; never shown
        for file, reason in layout.left_out:
            self.uses.append(FileUse(file, "left out", reason))
        for file in layout.missing:
            self._unreadable(file, "a symbolic link to a file that is not there (git annex get, dvc pull?)")

    def scan(self, metadata: Path | None, rows: dict[str, dict[str, str]]) -> FolderScan:
        candidates = self._images_by_content()
        names = {one.file for one in candidates}
        pictures = [one for one in candidates if not _named_as_mask(one)]
        with ThreadPoolExecutor(READ_THREADS) as pool:
            list(pool.map(self._look, pictures))
        masks = find_masks(candidates, self._look, self.settings)
        images = self._images(candidates, masks)
        self._say_images_like_masks(images)
        self.layout.notes.extend(grey_notes(self.deep, self.settings.grey_bits))
        folder_of = {one.file: "/".join(one.place.beside) for one in candidates}
        images, patients = with_patients(images, rows, metadata, self.who, self.settings.group, folder_of)
        if self.settings.phantoms:
            patients = Patients(SIMULATED)
        taken = names & {image.file for image in images if image.frame}
        if taken:
            raise UserError(f"{self.layout.root}: {min(taken)!r} is a file and a frame of another one; rename the file")
        for file in masks.stray:
            self.uses.append(FileUse(file, "left out", "a mask without its image"))
        account = Account.of(self.uses, self.layout.notes, self.settings.frames, self.layout.files)
        unreadable = sorted((one.file, one.why) for one in account.files if one.use == "unreadable")
        sides: dict[str, Side] = {
            image.file: self.layout.sides[image.path] for image in images if image.path in self.layout.sides
        }
        images.sort(key=lambda image: image.file)
        return FolderScan(
            tuple(images),
            tuple(unreadable),
            tuple(sorted(masks.stray)),
            self.layout.root,
            account,
            sides,
            tuple(sorted(self.odd)),
            tuple(sorted(self.flat)),
            patients,
        )

    def _say_images_like_masks(self, images: Sequence[SourceImage]) -> None:
        """Names alone decide where dataset.masks is given; a list that forgot one is seen here."""
        like_masks = []
        for image in images:
            seen = self.looked.get(image.path)
            if isinstance(seen, Picture) and seen.like_mask:
                like_masks.append(image.path)
        if self.settings.masks is not None and like_masks:
            self.layout.notes.append(
                f"{len(like_masks)} images have two grey levels only, as masks have, such as {like_masks[0]}: "
                "dataset.masks does not name them, so they are used as images"
            )

    def _images_by_content(self) -> list[Candidate]:
        """The candidates that are images by what they hold; the rest goes into the account."""
        found = []
        for one in self.layout.candidates:
            path = self.layout.root / one.file
            suffix = path.suffix.lower()
            try:
                kind = kind_of(path)
            except OSError as error:
                self._unreadable(one.file, error.strerror or str(error))
                continue
            if kind or suffix in IMAGE_SUFFIXES:
                found.append(one)
            elif path.name.upper() == "DICOMDIR":
                self.uses.append(FileUse(one.file, "left out", "an index of DICOM files"))
            else:
                what = f"({shown(suffix)})" if suffix else "(no suffix)"
                self.uses.append(FileUse(one.file, "left out", f"no image that busray reads {what}"))
        return found

    def _look(self, one: Candidate) -> Picture | None:
        if one.file not in self.looked:
            self.looked[one.file] = describe(self.layout.root / one.file, grey_bits=self.settings.grey_bits or 0)
        seen = self.looked[one.file]
        return None if isinstance(seen, Unreadable) else seen

    def _unreadable(self, file: str, reason: str) -> None:
        self.uses.append(FileUse(file, "unreadable", reason))

    def _images(self, candidates: Sequence[Candidate], masks: Masks) -> list[SourceImage]:
        """The images' records; images, masks and unreadable files go into the account."""
        masks_of: dict[str, list[str]] = {}
        for mask, image in masks.images_of.items():
            masks_of.setdefault(image, []).append(mask)
        aside = {*masks.images_of, *masks.stray}
        rest = [one for one in candidates if one.file not in aside]
        images: list[SourceImage] = []
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for one, frames in zip(rest, pool.map(self._frames, rest), strict=True):
                of_image = tuple(sorted(masks_of.get(one.file, ())))
                of_image = self._usable_masks(one, frames, of_image)
                if isinstance(frames, Unreadable):
                    self._unreadable(one.file, frames.reason)
                    continue
                of_file = []
                self.who[one.file] = frames[0][1].who
                for number, seen in frames:
                    file = f"{one.file}#{number}" if number else one.file
                    size, content = (seen.width, seen.height), (seen.mode, seen.sha256)
                    assert one.class_name is not None
                    of_file.append(
                        SourceImage(
                            file, one.class_name, *size, *content, of_image, frame=number, reading=seen.reading,
                            grey_bits=self.settings.grey_bits or 0,
                        )
                    )  # fmt: skip
                    if seen.deep:
                        self.deep[file] = seen.deep
                    if seen.odd:
                        self.odd.append((file, seen.odd))
                    if seen.flat:
                        self.flat.append(file)
                total = frames[0][1].frames
                self.uses.append(FileUse(one.file, "image", "", one.class_name or "", total, len(of_file)))
                images += of_file
        return images

    def _usable_masks(
        self, one: Candidate, frames: "list[tuple[int, Picture]] | Unreadable", masks: tuple[str, ...]
    ) -> tuple[str, ...]:
        """masks, or none where they may show another frame than the one that is used."""
        reason = ""
        if isinstance(frames, list) and [number for number, _ in frames] != [0]:
            reason = "a mask of a file with several frames: it does not say of which"
        for mask in masks:
            self.uses.append(FileUse(mask, "left out", reason) if reason else FileUse(mask, "mask", one.file))
        return () if reason else masks

    def _frames(self, one: Candidate) -> list[tuple[int, Picture]] | Unreadable:
        """(number, what it is) of each used frame of a file."""
        first = self._look(one)
        if first is None:
            reason = self.looked[one.file]
            assert isinstance(reason, Unreadable)
            return reason
        numbers = chosen_frames(first.frames, self.settings.frames)
        if numbers == [0]:
            return [(0, first)]
        seen = describe_frames(self.layout.root / one.file, numbers, self.settings.grey_bits or 0)
        if isinstance(seen, Unreadable):
            return Unreadable(f"frame {seen.frame}: {seen.reason}", seen.frame)
        return list(zip(numbers, seen, strict=True))


def grey_notes(deep: Mapping[str, Deep], grey_bits: int | None) -> list[str]:
    """What to know of images (file -> their 16-bit grey) that may be read too dark, or each another
    way."""
    if not deep or grey_bits:
        return []
    brightest = max(deep, key=lambda file: deep[file].greatest)
    needed = max(8, deep[brightest].greatest.bit_length())
    bits = Counter(one.bits for one in deep.values())
    first = (
        f"{len(deep)} images have 16-bit grey of which no file says how many bits it holds; their greatest value is "
        f"{deep[brightest].greatest} ({needed} bits, {brightest})"
    )
    if len(bits) > 1:
        ways = ", ".join(f"{n} as {held} bits" for held, n in sorted(bits.items()))
        return [f"{first}. Each is read by its own values: {ways}. {_advice(needed)} and all are read alike"]
    if needed < deep[brightest].bits:
        return [
            f"{first}. They are read as {deep[brightest].bits} bits, so none is brighter than "
            f"{deep[brightest].greatest / 2 ** deep[brightest].bits:.0%} of white. {_advice(needed)}"
        ]
    return []


def _advice(bits: int) -> str:
    return f"If their device has {bits} bits, add --dataset.grey_bits={bits}"


def chosen_frames(n: int, setting: str | int) -> list[int]:
    """Which of n frames are used (dataset.frames)."""
    if n == 1 or setting == "first":
        return [0]
    if setting == "middle":
        return [n // 2]
    if setting == "all" or int(setting) >= n:
        return list(range(n))
    wanted = int(setting)
    return [(2 * i + 1) * n // (2 * wanted) for i in range(wanted)]


def _named_as_mask(one: Candidate) -> bool:
    return one.place.in_masks or "mask" in one.stem.casefold()
