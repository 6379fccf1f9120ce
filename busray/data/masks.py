"""Which files are masks, and of which image: by dataset.masks, by common names, by content."""

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from busray.config import Dataset
from busray.data.folder import Candidate, MaskNames
from busray.data.pixels import Picture
from busray.records import UserError

Look = Callable[[Candidate], Picture | None]  # None: the file cannot be read


@dataclass
class Masks:
    """Masks of images, masks without an image; all other files are images."""

    images_of: dict[str, str] = field(default_factory=dict[str, str])  # mask -> its image
    stray: list[str] = field(default_factory=list[str])


@dataclass
class _Doubt:
    file: str
    reason: str
    pattern: str = ""  # that would make the file a mask


def find_masks(files: Sequence[Candidate], look: Look, settings: Dataset) -> Masks:
    """Sort out masks. UserError asks where names and content do not say which it is.

    look: decodes a file, at most once. Of masks that are named `_mask` and have their image
    nothing is decoded.
    """
    names, found, doubts = MaskNames(settings.masks), Masks(), list[_Doubt]()
    base_of = {one.file: _image_stem(one, names) for one in files}
    named = [one for one in files if base_of[one.file] is not None]
    others = [one for one in files if base_of[one.file] is None]
    # A file that is named as a mask can be the image of another one: a_tumor and a_tumor_mask.
    index, wider = _Index(others), _Index(files)
    images = list(others)
    for one in named:
        base = base_of[one.file] or ""
        partners = index.partners(one, base) or [p for p in wider.partners(one, base) if p is not one]
        if len(partners) > 1:
            these = f"{partners[0].file} or of {partners[1].file}"
            doubts.append(_Doubt(one.file, f"a mask of {these}? rename it, or put masks of a class into its folder"))
            continue
        if partners and (names.by_names_alone or _says_mask(one)):
            found.images_of[one.file] = partners[0].file
            continue
        if names.by_names_alone:
            found.stray.append(one.file)
            continue
        picture = look(one)
        like_mask = picture is None or picture.like_mask or picture.flat
        if like_mask and partners:
            found.images_of[one.file] = partners[0].file
        elif like_mask and (picture is not None or _says_mask(one)):
            found.stray.append(one.file)
        elif like_mask or not (partners or one.place.in_masks or _says_mask(one)):
            images.append(one)  # it is only named like a mask, or nobody can read it
        else:
            where = "lies in a folder of masks" if one.place.in_masks else "is named like a mask"
            beside = f", beside {partners[0].file}" if partners else ", and has no image"
            pattern = names.written(one.file) or ""
            doubts.append(_Doubt(one.file, f"{where}{beside}, but holds more than a mask's two levels", pattern))
    if not names.by_names_alone:
        _by_content(images, look, found, doubts)
    if doubts:
        raise UserError(_question(doubts, sorted({*found.images_of, *found.stray}), names))
    return found


def _image_stem(one: Candidate, names: MaskNames) -> str | None:
    stem = names.image_stem(one.stem)
    return one.stem if stem is None and one.place.in_masks else stem


def _says_mask(one: Candidate) -> bool:
    return not one.place.in_masks and "mask" in one.stem.casefold()


class _Index:
    """Images by stem."""

    def __init__(self, files: Sequence[Candidate]) -> None:
        self.by_stem: Mapping[str, list[Candidate]] = defaultdict(list)
        for one in files:
            if not one.place.in_masks:
                self.by_stem[one.stem.casefold()].append(one)

    def partners(self, mask: Candidate, stem: str) -> list[Candidate]:
        """The images that a mask with this stem can belong to, by the nearest rule that finds
        one."""
        found = self.by_stem.get(stem.casefold(), ())
        found = [one for one in found if mask.class_name in (None, one.class_name)]
        for nearer in (_same_side, _same_folders, _same_spelling):
            found = [one for one in found if nearer(one, mask, stem)] or found
        return found


def _same_side(image: Candidate, mask: Candidate, stem: str) -> bool:
    return (image.place.side, image.place.inner_side) == (mask.place.side, mask.place.inner_side)


def _same_folders(image: Candidate, mask: Candidate, stem: str) -> bool:
    return image.place.beside == mask.place.beside


def _same_spelling(image: Candidate, mask: Candidate, stem: str) -> bool:
    return image.stem == stem


def _by_content(images: Sequence[Candidate], look: Look, found: Masks, doubts: list[_Doubt]) -> None:
    """Masks among what no name tells: two levels, the size and stem of an image."""
    like_masks: list[tuple[Candidate, Picture]] = []
    pictures: list[Candidate] = []
    for one in images:
        picture = look(one)
        if picture is not None and picture.like_mask:
            like_masks.append((one, picture))
        else:
            pictures.append(one)
    index = _Index(pictures)
    for one, picture in like_masks:
        same_stem = []
        for partner in index.partners(one, one.stem):
            other = look(partner)
            if other is not None and (other.width, other.height) == (picture.width, picture.height):
                same_stem.append(partner)
        if len(same_stem) == 1 and same_stem[0].place.beside == one.place.beside:
            found.images_of[one.file] = same_stem[0].file
            continue
        near, pattern = _named_after(one, pictures)
        beside = f", beside {near.file}" if near else ""
        doubts.append(_Doubt(one.file, f"has two levels as a mask has{beside}, and no name that says so", pattern))


def _named_after(mask: Candidate, pictures: Sequence[Candidate]) -> tuple[Candidate | None, str]:
    """(the image of the same class whose name is within a file's name, how dataset.masks would name
    the file); (None, "") where there is none."""
    best: tuple[Candidate | None, str] = (None, "")
    for one in pictures:
        longer = best[0] is None or len(one.stem) > len(best[0].stem)
        if one.class_name == mask.class_name and longer:
            pattern = _pattern_between(one, mask)
            if pattern:
                best = (one, pattern)
    return best


def _pattern_between(image: Candidate, mask: Candidate) -> str:
    """`*_word`, `word_*` or `folder/`, as a mask is named after an image; else empty."""
    if image.stem == mask.stem:
        deeper = mask.place.beside[len(image.place.beside) :]
        return f"{deeper[-1]}/" if deeper and "*" not in deeper[-1] else ""
    before, there, after = mask.stem.partition(image.stem)
    if not there or (before and after) or "*" in before + after:
        return ""
    if after:
        return f"*{after}" if _is_end_of_word(image.stem, after) else ""
    return f"{before}*" if _is_end_of_word(before, image.stem) else ""


def _is_end_of_word(text: str, rest: str) -> bool:
    """Whether a word ends between the two: `case1` + `_m` and `case1` + `m`, not `b` + `ilevel`."""
    a, b = text[-1], rest[0]
    return not ((a.isalpha() and b.isalpha()) or (a.isdigit() and b.isdigit()))


def _question(doubts: Sequence[_Doubt], known: Sequence[str], names: MaskNames) -> str:
    """What is asked. known: files that are masks without a doubt."""
    lines = [f"{len(doubts)} files: are they masks or images?"]
    lines += [f"  {one.file}: {one.reason}" for one in doubts[:10]]
    if len(doubts) > 10:
        lines.append(f"  and {len(doubts) - 10} more")
    # A list replaces the common names, so it has to name the masks that are known already, too.
    doubted = _without_numbers({one.pattern for one in doubts if one.pattern})
    used = {written for file in known if (written := names.written(file))} - doubted
    lines.append("dataset.masks lists how all masks are named, and then names alone decide:")
    if doubted:
        lines.append(f"  if they are masks:  {_flag(used | doubted)}")
    lines.append(f"  if they are images: {_flag(used)}")
    if any(not one.pattern for one in doubts):
        lines.append("  a mask whose name does not say its image: rename it to IMAGE_mask, such as case1_mask.png")
    return "\n".join(lines)


def _flag(patterns: set[str]) -> str:
    return f"--dataset.masks={shlex.quote(json.dumps(sorted(patterns), ensure_ascii=False))}"


def _without_numbers(patterns: set[str]) -> set[str]:
    """`*_m` for `*_m1` and `*_m2`: a number after the word does not count."""
    words: dict[str, set[str]] = defaultdict(set)
    for pattern in patterns:
        words[re.sub(r"[-_. ]?\(?\d+\)?$", "", pattern)].add(pattern)
    merged = set[str]()
    for word, of_word in words.items():
        usable = len(of_word) > 1 and len(word) > 1 and word.startswith("*")
        merged |= {word} if usable else of_word
    return merged
