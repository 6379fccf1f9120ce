"""What lies below a data folder, by names alone: class folders, splits, images, masks, leftovers.

read.py looks into the files; account.py counts them.
"""

import os
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from busray.config import Dataset, safe_name
from busray.data.pixels import kind_of
from busray.failures import missing_folder
from busray.layout import left_by_a_system
from busray.places import hidden_character
from busray.records import UserError

Side = Literal["train", "val", "test"]

IMAGE_SUFFIXES = frozenset(
    (
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".gif",
        ".webp",
        ".avif",
        ".jp2",
        ".j2k",
        ".jpx",
        ".pgm",
        ".ppm",
        ".pnm",
        ".dcm",
        ".dicom",
        ".dic",
    )
)
"""Suffixes that promise an image: what cannot be read as one is a damaged file."""
NO_IMAGE = {
    "a video: save the frames that you need as images": ".mp4 .avi .mov .mkv .wmv .webm .mpg .mpeg .m4v",
    "an archive: unpack it": ".zip .rar .7z .tar .gz .tgz .bz2 .xz",
    "a volume or array: save its images as PNG": ".nii .mha .mhd .nrrd .raw .npy .npz .mat .h5 .hdf5",
    "not an image": ".txt .csv .tsv .xls .xlsx .ods .json .jsonl .xml .yaml .yml .md .rst .html .pdf .doc .docx .ppt "
    ".pptx .py .ipynb .m .sh .log .db .ini .lnk .url .parquet .pt .pth .pkl .bin .ckpt .safetensors .sha256 .md5 .toml",
}
REASON_OF_SUFFIX = {suffix: reason for reason, suffixes in NO_IMAGE.items() for suffix in suffixes.split()}

LEFTOVER = "left behind by an operating system or a program"
OF_PROGRAMS = re.compile(r"__pycache__|~\$.*|.*\.(?:crdownload|part|tmp|swp)|.*~")
"""Names that programs leave, in lower case; layout.py knows those of operating systems."""
HIDDEN = "hidden: its name, or its folder's, begins with a dot"

SIDES: dict[str, Side] = {"train": "train", "training": "train", "val": "val", "valid": "val", "dev": "val"}
SIDES |= {"validation": "val", "test": "test", "testing": "test"}
IMAGE_FOLDERS = frozenset(("image", "images", "img", "imgs"))


@dataclass(frozen=True)
class Walked:
    """A file, or a link, below the data folder."""

    file: str  # relative to the data folder, with `/`
    reason: str = ""  # why it is left out whatever it holds
    outside: bool = False  # a link that leads out of the folder and is not followed
    linked: bool = False  # reached through a link that leads out of the folder
    missing: bool = False  # a link to nothing
    is_folder: bool = False  # a link to a folder, not followed

    @property
    def name(self) -> str:
        return self.file.rpartition("/")[2]

    @property
    def folders(self) -> tuple[str, ...]:
        parts = tuple(self.file.split("/"))
        return parts if self.is_folder else parts[:-1]


@dataclass(frozen=True)
class Place:
    """What the folders of a file say of it."""

    side: Side | None = None  # a folder train, val or test above the class
    inner_side: Side | None = None  # such a folder right below the class
    class_folder: str | None = None
    in_masks: bool = False  # in a folder of masks
    other: str | None = None  # the folder that is no class of this run
    beside: tuple[str, ...] = ()  # further folders: a mask lies in the same ones as its image


@dataclass(frozen=True)
class Candidate:
    """A file that may be an image or a mask of a class."""

    file: str  # relative to the root
    class_name: str | None  # None: a mask in a folder for all classes
    place: Place

    @property
    def stem(self) -> str:
        return PurePosixPath(self.file).stem


@dataclass
class Layout:
    """The files of a data folder, sorted out by their names."""

    root: Path  # the folder with the class folders; it may be the only one of the data folder
    classes: dict[str, str]  # class -> its folder
    files: int  # in the data folder
    candidates: list[Candidate] = field(default_factory=list[Candidate])
    missing: list[str] = field(default_factory=list[str])  # links to nothing that promise an image
    left_out: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (file, reason)
    sides: dict[str, Side] = field(default_factory=dict[str, Side])  # file -> the split that it comes in
    notes: list[str] = field(default_factory=list[str])  # what the user should know, once


def lay_out(folder: Path, classes: "Classes", settings: Dataset) -> Layout:
    """Sort out the files of a folder. UserError where its folders are not those of a data set.

    classes: class -> its folder, or names of classes, or None: every folder of images is a class.
    """
    walked = walk(folder, links=settings.links)
    wanted = None if classes is None else _folders_of(classes)
    masks = MaskNames(settings.masks)
    outer = _outer(folder, walked, wanted, masks)
    root = folder.joinpath(*outer)
    depth = len(outer)
    inside, around = [], []
    for one in walked:
        (inside if one.folders[:depth] == outer else around).append(one)
    found = _classes_there(root, [one.folders[depth:] for one in inside if _may_be_image(one)], wanted, masks)
    names = _names(root, found, wanted, masks)
    layout = Layout(root, names, len(walked))
    if outer:
        layout.notes.append(f"the classes lie in {root}: files are named from there")
    for one in around:
        layout.left_out.append((f"{'../' * depth}{shown(one.file)}", one.reason or "beside the folder of the classes"))
    _sort_out(layout, inside, depth, masks, settings)
    if classes is None and settings.group is None:
        _say_same_folders(layout)
    _refuse_empty(layout, inside, depth)
    return layout


Classes = Mapping[str, str] | Sequence[str] | None


def _folders_of(classes: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    return dict(classes) if isinstance(classes, Mapping) else {name: name for name in classes}


def class_root(folder: Path, classes: Classes, settings: Dataset | None = None) -> Path:
    """The folder with the class folders: folder, or the only one in it (an archive's outer folder).

    UserError where folder is missing.
    """
    settings = settings or Dataset()
    wanted = None if classes is None else _folders_of(classes)
    return folder.joinpath(*_outer(folder, walk(folder, links=settings.links), wanted, MaskNames(settings.masks)))


def class_names(folder: Path, settings: Dataset | None = None) -> list[str]:
    """The names of the folder's classes, sorted. UserError where there is none."""
    return sorted(lay_out(folder, None, settings or Dataset()).classes)


def shown(name: str) -> str:
    """A name as it can be printed and stored: invisible characters are written as escapes."""
    return ascii(name)[1:-1] if hidden_character(name) else name


# ---- the walk ----


def walk(folder: Path, *, links: bool) -> list[Walked]:
    """Every file and every link that is not followed, sorted. UserError for a folder that cannot
    be listed. links: follow those that lead out of the folder."""
    if not folder.is_dir():
        raise missing_folder("data folder", folder, _nearest(folder))
    top = os.path.realpath(folder)
    found: list[Walked] = []
    # (folders from the top, their real paths, why all in it is left out, reached through a link)
    waiting: list[tuple[tuple[str, ...], tuple[str, ...], str, bool]] = [((), (top,), "", False)]
    while waiting:
        folders, above, reason, linked = waiting.pop()
        for entry in _entries(folder.joinpath(*folders)):
            file = "/".join((*folders, entry.name))
            why = reason or _leftover(entry.name)
            target = os.path.realpath(entry.path) if entry.is_symlink() else ""
            leaves = bool(target) and not _is_below(target, top)
            if target and (why or not os.path.exists(target)):
                found.append(Walked(file, why, missing=True))
            elif leaves and not links:
                found.append(Walked(file, outside=True, is_folder=entry.is_dir()))
            elif entry.is_dir():
                real = target or os.path.join(above[-1], entry.name)
                if real in above:
                    found.append(Walked(file, "a link to a folder that it lies in"))
                else:
                    waiting.append(((*folders, entry.name), (*above, real), why, linked or leaves))
            elif entry.is_file():
                found.append(Walked(file, why, linked=linked or leaves))
            else:
                found.append(Walked(file, why or "a pipe, socket or device, not a file"))
    return sorted(found, key=lambda one: one.file)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"data folder: {shown(str(folder))} cannot be listed: {error.strerror}") from error


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip(os.sep) + os.sep)


def _leftover(name: str) -> str:
    if left_by_a_system(name) or OF_PROGRAMS.fullmatch(name.lower()):
        return LEFTOVER
    return HIDDEN if name.startswith(".") else ""


def _nearest(folder: Path) -> str:
    """Which folders there are where this one is missing."""
    parent = folder.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    try:
        names = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return ""
    return f"folders in {parent}: {_some(names)}" if names else ""


# ---- names of folders ----


def same_name(a: str, b: str) -> bool:
    """Whether two names are the same letters, composed or not."""
    return unicodedata.normalize("NFC", a) == unicodedata.normalize("NFC", b)


class MaskNames:
    """How files and folders of masks are named (dataset.masks)."""

    WORDS = (
        "mask", "masks", "seg", "segmentation", "segmented", "gt", "groundtruth", "ground_truth", "label", "labels",
        "annotation", "tumor", "tumour", "lesion", "roi",
    )  # fmt: skip
    FOLDERS = (
        "mask", "masks", "seg", "segmentation", "segmentations", "gt", "groundtruth", "ground_truth", "ground truth",
        "label", "labels", "labelsTr", "annotation", "annotations", "annots",
    )  # fmt: skip
    BEFORE = ("mask", "seg", "gt", "label")  # words that also stand before the image's name

    def __init__(self, given: Sequence[str] | None) -> None:
        """given: dataset.masks; None: the common names."""
        self.by_names_alone = given is not None
        if given is None:
            given = (
                *(f"*_{w}" for w in self.WORDS),
                *(f"{w}_*" for w in self.BEFORE),
                *(f"{f}/" for f in self.FOLDERS),
            )
        self.folders = frozenset(_flat(name[:-1]) for name in given if name.endswith("/"))
        self.patterns = {name: _pattern(name) for name in given if not name.endswith("/")}

    def is_folder(self, name: str) -> bool:
        return _flat(name) in self.folders

    def image_stem(self, stem: str) -> str | None:
        """The name of the image that a mask of this name belongs to; None: no mask's name."""
        for pattern in self.patterns.values():
            match = pattern.fullmatch(stem)
            if match:
                return match["image"]
        return None

    def written(self, file: str) -> str | None:
        """How dataset.masks names a mask of this name: `*_mask` or `masks/`; None: not at all."""
        *folders, name = file.split("/")
        for folder in folders:
            if self.is_folder(folder):
                return f"{folder}/"
        stem = PurePosixPath(name).stem
        return next((given for given, pattern in self.patterns.items() if pattern.fullmatch(stem)), None)


def _flat(name: str) -> str:
    return re.sub(r"[-_. ]", "", name.casefold())


def _pattern(name: str) -> re.Pattern[str]:
    """`*_mask`: any case, any of the separators `_-. `, and a number after the word."""
    before, _, after = name.partition("*")
    number = r"(?:[-_. ]?\(?\d+\)?)?"
    words = [re.sub(r"(?:\\?[-_. ])+", "[-_. ]+", re.escape(part)) for part in (before, after)]
    return re.compile(f"{words[0]}(?P<image>.+?){words[1]}{number if after else ''}", re.IGNORECASE)


def _side(name: str) -> Side | None:
    return SIDES.get(re.sub(r"[-_. ]?(?:set|data|dataset|images|imgs)$", "", name.casefold()))


def _place(folders: Sequence[str], wanted: Iterable[str] | None, masks: MaskNames) -> Place:
    """wanted: folders of classes; None: the first folder of no other meaning is one."""
    side, inner_side, class_folder, in_masks, beside = None, None, None, False, []
    for name in folders:
        if class_folder is None:
            known = [folder for folder in wanted or () if same_name(name, folder)]
            if known:
                class_folder = known[0]
            elif _side(name) and side is None:
                side = _side(name)
            elif masks.is_folder(name):
                in_masks = True
            elif name.casefold() in IMAGE_FOLDERS:
                pass
            elif wanted is None:
                class_folder = name
            else:
                return Place(side, other=name, in_masks=in_masks)
        elif masks.is_folder(name):
            in_masks = True
        elif name.casefold() in IMAGE_FOLDERS:
            pass
        elif _side(name) and inner_side is None and not beside:
            inner_side = _side(name)
        else:
            beside.append(name)
    return Place(side, inner_side, class_folder, in_masks, None, tuple(beside))


def _has_role(name: str, masks: MaskNames) -> bool:
    return bool(_side(name)) or masks.is_folder(name) or name.casefold() in IMAGE_FOLDERS


def _may_be_image(one: Walked) -> bool:
    return not one.reason and _suffix(one.name) not in REASON_OF_SUFFIX


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


# ---- the classes ----


def _outer(
    folder: Path, walked: Sequence[Walked], wanted: Mapping[str, str] | None, masks: MaskNames
) -> tuple[str, ...]:
    """The folders to go down to where the class folders are; () where they are in folder itself."""
    usable = [one for one in walked if _may_be_image(one)]
    outer: tuple[str, ...] = ()
    while True:
        below = [one.folders[len(outer) :] for one in usable if one.folders[: len(outer)] == outer]
        names = {folders[0] for folders in below if folders}
        for one in usable:
            if one.folders == outer and _is_picture(folder / one.file):
                names.add("")  # pictures lie here: it is no outer folder
        classes = {place.class_folder for place in (_place(folders, None, masks) for folders in below)} - {None}
        if wanted is None:
            there = len(classes) > 1
        else:
            there = any(_place(folders, wanted.values(), masks).class_folder for folders in below)
            there = there or any(safe_name(name or "") in wanted for name in classes)
        if there:
            return outer
        if len(names) != 1 or "" in names or _has_role(name := names.pop(), masks):
            return ()
        outer = (*outer, name)


def _is_picture(path: Path) -> bool:
    suffix = _suffix(path.name)
    if suffix in IMAGE_SUFFIXES:
        return True
    try:
        return kind_of(path) is not None
    except OSError:
        return False


def _classes_there(
    root: Path, below: Sequence[Sequence[str]], wanted: Mapping[str, str] | None, masks: MaskNames
) -> list[str]:
    """Folders that can be classes: all that hold what may be an image."""
    found: set[str] = set()
    for folders in below:
        place = _place(folders, None, masks)
        if wanted is not None:
            exact = _place(folders, wanted.values(), masks)
            place = exact if exact.class_folder else place
        if place.class_folder is not None:
            found.add(place.class_folder)
    for entry in root.iterdir():  # also those with nothing in them, which are named
        name = entry.name
        if not entry.is_dir() or _leftover(name):
            continue
        empty = wanted is None and not _has_role(name, masks) and not any(entry.iterdir())
        if empty or any(same_name(name, folder) for folder in (wanted or {}).values()):
            found.add(name)
    return sorted(found)


def _names(root: Path, found: Sequence[str], wanted: Mapping[str, str] | None, masks: MaskNames) -> dict[str, str]:
    """class -> its folder. UserError where a class has none, or two folders have one name."""
    if wanted is None:
        if not found:
            raise UserError(_no_classes(root, masks))
        names: dict[str, str] = {}
        for folder in found:
            name = safe_name(folder) or folder
            if name in names:
                raise UserError(f"{root}: the folders {names[name]!r} and {folder!r} are one class's name; rename one")
            names[name] = folder
        return names
    names, problems = {}, []
    for name, folder in wanted.items():
        exact = [there for there in found if same_name(there, folder)]
        # A class named in a program by its safe name finds its folder too.
        alike = exact or [there for there in found if folder == name and safe_name(there) == name]
        if alike:
            names[name] = alike[0]
            continue
        close = [there for there in found if _flat(there) == _flat(folder)]
        hint = f"; --classes.{name}.folder={close[0]!r} names the one there" if close else ""
        problems.append(f"class {name}: no folder {root / folder}; folders there: {_tree(root)}{hint}")
    if problems:
        if together := _in_several_folders(root, list(wanted.values())):
            problems.append(together)
        raise UserError("\n".join(problems))
    return names


def _in_several_folders(root: Path, folders: Sequence[str]) -> str:
    """Commands that put classes together of which several folders hold one each; empty where they
    do not."""
    lines = []
    for folder in folders:
        holders = sorted(entry.name for entry in root.iterdir() if (entry / folder).is_dir())
        if len(holders) < 2 or any(hidden_character(name) for name in holders):
            return ""
        moves = [f"mv {_quoted(root / name / folder)} {_quoted(root / folder / name)}" for name in holders]
        lines.append(" && ".join([f"mkdir {_quoted(root / folder)}", *moves]))
    return "\n".join(("the classes lie in several folders; put them together:", *lines))


def _say_same_folders(layout: "Layout") -> None:
    """A note where what is taken for classes seems to be patients or sites, with classes below."""
    inside = {folder: set[str]() for folder in layout.classes.values()}
    for one in layout.candidates:
        if one.place.class_folder is not None:
            inside[one.place.class_folder].add(one.place.beside[0] if one.place.beside else "")
    first = next(iter(inside.values()), set[str]())
    if len(inside) > 1 and len(first) > 1 and "" not in first and all(names == first for names in inside.values()):
        layout.notes.append(
            f"the folders {_some(sorted(inside))} are taken for classes, and each holds {_some(sorted(first))}: "
            "if these are the classes, put the images of each class into one folder"
        )


def _no_classes(root: Path, masks: MaskNames) -> str:
    names = sorted(name for entry in root.iterdir() if not _leftover(name := entry.name))
    if not names:
        return f"data folder {root} is empty: it needs one folder of images per class"
    files = [name for name in names if (root / name).is_file()]
    message = f"data folder {root} has no class folder: the images of each class belong into a folder of its name"
    there = f"{message}\nthere: {_tree(root)}"
    if files:
        there += f"{', ' if _tree(root) else ''}{_kinds(files)}"
    pictures = [name for name in files if _suffix(name) in IMAGE_SUFFIXES]
    folders = [name for name in names if (root / name).is_dir()]
    if pictures:
        there += (
            f"\nif it is one class, give the folder above: busray check {_quoted(root.absolute().parent)}; "
            f"else move the images: mkdir {_quoted(root / 'benign')} && mv IMAGE... {_quoted(root / 'benign')}"
        )
    elif moved := [name for name in folders if _has_role(name, masks) and not hidden_character(name)]:
        into, what = _quoted(root / "benign"), shlex.join(str(root / name) for name in moved)
        there += f"\nif all are of one class, such as benign: mkdir {into} && mv {what} {into}"
    return there


def _quoted(path: Path) -> str:
    """A path as a shell needs it."""
    return shlex.quote(str(path))


def _tree(root: Path) -> str:
    """The folders of root with what they hold, one level down."""
    parts = []
    for entry in sorted(root.iterdir()):
        if entry.is_dir() and not _leftover(entry.name):
            try:
                inside = [name.name for name in sorted(entry.iterdir()) if not _leftover(name.name)]
            except OSError:
                inside = []
            folders = [name for name in inside if (entry / name).is_dir()]
            files = [name for name in inside if name not in folders]
            holds = ", ".join(filter(None, (f"folders {_some(folders)}" if folders else "", _kinds(files))))
            parts.append(f"{shown(entry.name)} ({holds or 'empty'})")
    return _some(parts, 12, escape=False)


def _kinds(files: Sequence[str]) -> str:
    counts = Counter(shown(_suffix(name)) or "without suffix" for name in files)
    return ", ".join(f"{n} {suffix}" for suffix, n in counts.most_common(4))


def _some(names: Sequence[str], most: int = 6, *, escape: bool = True) -> str:
    text = ", ".join(shown(name) if escape else name for name in names[:most])
    return text + (f" and {len(names) - most} more" if len(names) > most else "")


# ---- the files ----


def _sort_out(layout: Layout, inside: Sequence[Walked], depth: int, masks: MaskNames, settings: Dataset) -> None:
    """Into layout: what may be an image or a mask, and why the other files are left out."""
    name_of = {folder: name for name, folder in layout.classes.items()}
    outside: list[str] = []
    hidden: list[tuple[str, str]] = []
    inner: dict[str, Side] = {}
    linked = 0
    for one in inside:
        file = "/".join(one.file.split("/")[depth:])
        folders = one.folders[depth:]
        place = _place(folders, name_of, masks)
        suffix = _suffix(one.name)
        reason = one.reason
        if not reason and place.class_folder is None and not place.in_masks:
            reason = _in_no_class(place)
        elif not reason and suffix in REASON_OF_SUFFIX:
            reason = f"{REASON_OF_SUFFIX[suffix]} ({suffix})"
        if reason:
            layout.left_out.append((shown(file), reason))
            continue
        if one.outside:
            outside.append(file)
            continue
        if one.missing:
            layout.missing.append(shown(file))
            continue
        problem = hidden_character(file)
        if problem:
            hidden.append((file, problem))
            continue
        linked += one.linked
        class_name = None if place.class_folder is None else name_of[place.class_folder]
        layout.candidates.append(Candidate(file, class_name, place))
        if place.side and class_name:
            layout.sides[file] = place.side
        if place.inner_side and class_name:
            inner[file] = place.inner_side
    if outside:
        _refuse_links(layout.root, outside)
    if hidden:
        _refuse_names(layout.root, hidden)
    if linked:
        layout.notes.append(f"{linked} files are reached through symbolic links out of the folder (dataset.links)")
    _settle_sides(layout, inner, settings)


def _in_no_class(place: Place) -> str:
    if place.other:
        return f"the folder {shown(place.other)} is no class of this run"
    return f"in no class's folder, but in one for {place.side} images" if place.side else "lies in no class folder"


def _refuse_links(root: Path, files: Sequence[str]) -> None:
    target = os.path.realpath(root / files[0])
    raise UserError(
        f"{root}: {len(files)} symbolic links, such as {shown(files[0])}: each leads out of the data folder "
        f"(that one to {shown(target)}). If that is meant, follow them: --dataset.links=true "
        f"(busray check {_quoted(root)} --dataset.links=true)"
    )


def _refuse_names(root: Path, files: Sequence[tuple[str, str]]) -> None:
    lines = [f"{root}: {file!a}: its name has {problem}; rename it" for file, problem in files[:10]]
    if len(files) > 10:
        lines.append(f"and {len(files) - 10} more")
    if any("not composed" in problem for _, problem in files):
        lines.append(
            f"a program that composes the letters of all names: convmv -r -f utf8 -t utf8 --nfc --notest {root}"
        )
    raise UserError("\n".join(lines))


def _settle_sides(layout: Layout, inner: Mapping[str, Side], settings: Dataset) -> None:
    """The split that the folders give. UserError where it is there and nobody asked for it."""
    images = [one for one in layout.candidates if one.class_name and not one.place.in_masks]
    if not layout.sides and images and all(one.file in inner for one in images):
        layout.sides = dict(inner)
    count = Counter(layout.sides[one.file] for one in images if one.file in layout.sides)
    sides = {side: count[side] for side in ("train", "val", "test") if count[side]}
    there = ", ".join(f"{side} {n}" for side, n in sides.items())
    if settings.split == "folders":
        without = [one.file for one in images if one.file not in layout.sides]
        problems = []
        if len(sides) < 3:
            problems.append(f"{there or 'none of them'} files are there; {_missing_sides(sides)}")
        if without:
            problems.append(
                f"{len(without)} files, such as {without[0]}, are in none of them: move them out of the data folder, "
                "or into one"
            )
        if problems:
            raise UserError(
                f"dataset.split: folders: {layout.root} needs the folders train, val and test above or below the "
                f"classes: {'; '.join(problems)}"
            )
    elif len(sides) == 3:
        raise UserError(
            f"{layout.root}: this data set is split already, into folders ({there} files). Use that split: "
            f"--dataset.split=folders (busray check {_quoted(layout.root)} --dataset.split=folders). For a new split, "
            f"{TOGETHER}"
        )
    elif len(sides) == 2:
        raise UserError(
            f"{layout.root}: this data set is split already, into folders ({there} files). {_missing_sides(sides)}. "
            f"Or, for a new split, {TOGETHER}"
        )
    else:
        layout.sides = {}


TOGETHER = "put the images of each class into one folder"


def _missing_sides(sides: Mapping[str, int]) -> str:
    """What to do where folders of a given split are missing."""
    missing = [side for side in ("train", "val", "test") if side not in sides]
    if len(missing) > 1:
        return "without them --dataset.split=shares splits the images of plain class folders"
    if missing == ["train"]:
        return "A folder train is missing: without it there is nothing to train on"
    other = "train" if missing == ["val"] else "val"
    return (
        f"A folder {missing[0]} is missing: move some images of each class out of {other} into {missing[0]}/CLASS, all "
        "of a patient together, and use --dataset.split=folders"
    )


def _refuse_empty(layout: Layout, inside: Sequence[Walked], depth: int) -> None:
    """UserError for each class without a file that may be an image."""
    classes = {one.class_name for one in layout.candidates} | {None}
    problems = []
    for name, folder in layout.classes.items():
        promised = any(f"/{folder}/" in f"/{file}" for file in layout.missing)
        if name in classes or promised:
            continue
        names = [one.name for one in inside if folder in one.folders[depth:]]
        there = f"there: {_kinds(names)}" if names else "it is empty"
        problems.append(f"class {name}: no images in {layout.root / folder} ({there})")
    if problems:
        raise UserError("\n".join(problems))
