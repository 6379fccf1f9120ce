"""The account of a data folder: for each file, what it is or why it is left out."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Use = Literal["image", "mask", "unreadable", "left out"]


@dataclass(frozen=True)
class FileUse:
    """What one file of the data folder is."""

    file: str  # relative to the folder with the classes
    use: Use
    why: str = ""  # of a mask: its image; else the reason
    class_name: str = ""  # of an image
    frames: int = 1
    used: int = 1  # of the frames

    def to_dict(self) -> dict[str, Any]:
        value: dict[str, Any] = {"file": self.file, "use": self.use}
        if self.use == "mask":
            value["of"] = self.why
        elif self.why:
            value["because"] = self.why
        if self.frames > 1:
            value |= {"frames": self.frames, "frames_used": self.used}
        return value


@dataclass(frozen=True)
class Account:
    """Every file of a data folder, once, sorted."""

    files: tuple[FileUse, ...] = ()
    notes: tuple[str, ...] = ()  # what else the user should know of the folder
    frames_setting: str = "first"

    @staticmethod
    def of(files: Iterable[FileUse], notes: Iterable[str], frames: object, expected: int) -> "Account":
        """expected: files in the folder. A file that is missing here or counted twice is a bug."""
        ordered = sorted(files, key=lambda one: one.file)
        assert len(ordered) == len({one.file for one in ordered}) == expected, "a file is not accounted for once"
        return Account(tuple(ordered), tuple(notes), str(frames))

    def line(self) -> str:
        """One line for a run."""
        counts = Counter(one.use for one in self.files)
        parts = [f"{counts['image']} images", f"{counts['mask']} masks"]
        if counts["unreadable"]:
            parts.append(f"{counts['unreadable']} unreadable")
        reasons = Counter(one.why for one in self.files if one.use == "left out")
        if reasons:
            most = "; ".join(f"{n} {reason}" for reason, n in reasons.most_common(3))
            parts.append(f"{counts['left out']} left out ({most}{'; ...' if len(reasons) > 3 else ''})")
        return ". ".join((f"{len(self.files)} files: {', '.join(parts)}", *self.remarks()))

    def _frame_notes(self) -> list[str]:
        clips = [one for one in self.files if one.frames > 1 and one.use == "image"]
        if not clips:
            return []
        frames, used = sum(one.frames for one in clips), sum(one.used for one in clips)
        unused = f"{frames - used} frames are not used" if used < frames else "all are used"
        return [
            f"{len(clips)} files have {frames} frames, {unused} (dataset.frames={self.frames_setting}; "
            "first, middle, all or a number)"
        ]

    def rows(self) -> tuple[tuple[str, ...], ...]:
        """Rows of a table: what, how many files, an example."""
        groups: dict[tuple[int, str], list[FileUse]] = {}
        for one in self.files:
            groups.setdefault(_what(one), []).append(one)
        rows = []
        for (_, what), files in sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1]), item[0][1])):
            example = files[0].file + (f" of {files[0].why}" if files[0].use == "mask" else "")
            rows.append((what, str(len(files)), example))
        return tuple(rows)

    def remarks(self) -> tuple[str, ...]:
        """What else the user should know: frames that are not used, links, an outer folder."""
        return (*self._frame_notes(), *self.notes)

    def to_dict(self) -> dict[str, Any]:
        counts = Counter(one.use for one in self.files)
        return {
            "files": len(self.files),
            "counts": dict(counts),
            "left_out": dict(Counter(one.why for one in self.files if one.use == "left out")),
            "notes": self.remarks(),
            "each": [one.to_dict() for one in self.files],
        }


def _what(one: FileUse) -> tuple[int, str]:
    """(order, name) of a file's row."""
    if one.use == "image":
        return 0, f"image of {one.class_name}"
    if one.use == "mask":
        return 1, "mask of an image"
    if one.use == "unreadable":
        return 2, "cannot be read"
    return 3, f"left out: {one.why}"
