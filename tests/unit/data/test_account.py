"""Each file of the data folder is accounted for: as image, as mask of one, or left out because."""

import io
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from busray.cli import main
from busray.data import dicom
from busray.data.account import Account, FileUse
from busray.data.check import check
from busray.data.images import ImageFolder
from busray.data.prepare import make_dataset
from busray.data.read import chosen_frames, scan
from busray.records import DataSet, SourceImage, UserError, to_json
from tests.support.planted import save_dicom
from tests.unit.data.test_folder import mask, picture, settings, use_of

NOISE = np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)


def clip(path: Path, frames: int) -> None:
    """A DICOM clip whose frames have their number's grey in a corner; the first is black."""
    save_dicom(path, NOISE)
    dataset = pydicom.dcmread(path)
    pixels = np.stack([np.full_like(NOISE, 0) if i == 0 else NOISE // 2 for i in range(frames)])
    for i in range(frames):
        pixels[i, :40, :40] = i
    dataset.NumberOfFrames, dataset.PixelData = frames, pixels.tobytes()
    dataset.save_as(path)


def test_images_are_known_by_content_and_in_every_folder_below_a_class(tmp_path: Path) -> None:
    (tmp_path / "benign" / "more" / "deep").mkdir(parents=True)
    grey = Image.fromarray(NOISE)
    names = []
    for name, kind in (
        ("a.webp", "WEBP"), ("b.jfif", "JPEG"), ("c.gif", "GIF"), ("d.jp2", "JPEG2000"), ("e.pgm", "PPM"),
        ("f", "PNG"), ("more/g.PNG", "PNG"), ("more/deep/h.jpg", "PNG"), ("i.dat", "TIFF"),
    ):  # fmt: skip
        grey.save(tmp_path / "benign" / name, format=kind)
        names.append(f"benign/{name}")
    for name in ("IM-0001-0001", "US1.dicom", "1.2.840.10008"):
        save_dicom(tmp_path / "benign" / name, NOISE)
        names.append(f"benign/{name}")
    found = scan(tmp_path, ["benign"])
    assert [image.file for image in found.images] == sorted(names) and found.unreadable == ()
    assert {one.use for one in found.account.files} == {"image"}


def test_what_is_no_image_is_left_out_with_its_reason(tmp_path: Path) -> None:
    picture(tmp_path / "benign" / "a.png")
    picture(tmp_path / "other" / "a.png")
    names = ("notes.xlsx", "DICOMDIR", "video.mp4", "x.zip", "plain", "../list.csv")
    for name in (f"benign/{name}" for name in names):
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "benign" / "pipe.png")
    why = {one.file: one.why for one in scan(tmp_path, ["benign"]).account.files if one.use == "left out"}
    assert why == {
        "benign/notes.xlsx": "not an image (.xlsx)",
        "benign/DICOMDIR": "an index of DICOM files",
        "benign/video.mp4": "a video: save the frames that you need as images (.mp4)",
        "benign/x.zip": "an archive: unpack it (.zip)",
        "benign/plain": "no image that busray reads (no suffix)",
        "benign/pipe.png": "a pipe, socket or device, not a file",
        "list.csv": "lies in no class folder",
        "other/a.png": "the folder other is no class of this run",
    }


def test_a_file_that_is_counted_twice_or_not_at_all_is_a_bug() -> None:
    one = FileUse("a", "image")
    for files, expected in (((one, one), 2), ((one,), 2)):
        with pytest.raises(AssertionError):
            Account.of(files, (), "first", expected)


def test_check_prints_the_account_and_writes_each_file_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        picture(tmp_path / "data" / "benign" / f"{i}.png", i)
    mask(tmp_path / "data" / "benign" / "0_GT.png")
    (tmp_path / "data" / "benign" / "notes.txt").write_text("x")
    assert main(["check", str(tmp_path / "data"), f"--json={tmp_path / 'c.json'}"]) == 0
    printed = capsys.readouterr().out
    assert "Every file of the folder (5)" in printed and "left out: not an image (.txt)" in printed
    account = json.loads((tmp_path / "c.json").read_text())["account"]
    assert account["counts"] == {"image": 3, "mask": 1, "left out": 1}
    assert {"file": "benign/0_GT.png", "use": "mask", "of": "benign/0.png"} in account["each"]
    assert {"file": "benign/notes.txt", "use": "left out", "because": "not an image (.txt)"} in account["each"]


def test_check_takes_the_settings_of_the_data_set_and_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "benign" / "a.png")
    mask(tmp_path / "benign" / "a_x.png")
    assert main(["check", str(tmp_path)]) == 2
    assert main(["check", str(tmp_path), '--dataset.masks=["*_x"]']) == 0
    assert main(["check", str(tmp_path), "--dataset.mask=1"]) == 2
    assert "did you mean masks" in capsys.readouterr().err
    assert main(["check", str(tmp_path), "--sampling.steps=3"]) == 2


# ---- frames ----


def test_frames_that_are_not_used_are_said_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "benign").mkdir()
    clip(tmp_path / "benign" / "a.dcm", 10)
    found = scan(tmp_path, ["benign"])
    assert [(image.file, image.frame) for image in found.images] == [("benign/a.dcm", 0)]
    assert "1 files have 10 frames, 9 frames are not used (dataset.frames=first" in found.account.line()


@pytest.mark.parametrize(
    "setting, expected", [("first", [0]), ("middle", [5]), (2, [2, 7]), (10, [*range(10)]), ("all", [*range(10)])]
)
def test_the_frames_that_the_setting_names_are_images(tmp_path: Path, setting: str | int, expected: list[int]) -> None:
    (tmp_path / "benign").mkdir()
    clip(tmp_path / "benign" / "a.dcm", 10)
    found = scan(tmp_path, ["benign"], settings=settings(frames=setting))
    assert sorted(image.frame for image in found.images) == expected
    assert {image.path for image in found.images} == {"benign/a.dcm"}
    assert len({image.file for image in found.images}) == len(expected)
    loaded = ImageFolder(DataSet("", 128, "stretch", 0, (), (), (), ()), tmp_path, ("benign",)).load(found.images)
    assert loaded.pixels[:, 5, 5].tolist() == [image.frame for image in found.images]


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp"])
def test_pages_and_animations_are_frames(tmp_path: Path, name: str) -> None:
    (tmp_path / "benign").mkdir()
    pages = [Image.fromarray(np.roll(NOISE, 40 * i)) for i in range(3)]
    pages[0].save(tmp_path / "benign" / name, save_all=True, append_images=pages[1:])
    assert "3 frames, 2 frames are not used" in scan(tmp_path, ["benign"]).account.line()
    found = scan(tmp_path, ["benign"], settings=settings(frames="all"))
    assert [image.file for image in found.images] == [f"benign/{name}", f"benign/{name}#1", f"benign/{name}#2"]
    assert "all are used" in found.account.line()


def test_frames_of_one_file_are_on_one_side_and_one_unit(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for i in range(8):
        (tmp_path / "benign").mkdir(exist_ok=True)
        pages = [Image.fromarray(rng.integers(0, 256, (40, 50), dtype=np.uint8)) for _ in range(4)]
        pages[0].save(tmp_path / "benign" / f"{i}.tif", save_all=True, append_images=pages[1:])
    asked = settings(frames="all", val=0.25, test=0.25)
    dataset = make_dataset(asked, ["benign"], 64, tmp_path, check(tmp_path, ["benign"], settings=asked))
    side_of = {image.path: side for side in ("train", "val", "test") for image in dataset.split(side)}
    for side in ("train", "val", "test"):
        assert all(side_of[image.path] == side for image in dataset.split(side))
    assert len({image.unit for image in dataset.split("all")}) == 8
    assert DataSet.from_json(to_json(dataset)) == dataset


def test_a_first_frame_is_stored_as_an_image_was_before(tmp_path: Path) -> None:
    image = SourceImage("a/b.png", "a", 1, 1, "L", "0")
    assert "frame" not in json.loads(to_json(image))
    assert json.loads(to_json(SourceImage("a/b#2", "a", 1, 1, "L", "0", frame=2)))["frame"] == 2


def test_a_clip_is_read_as_often_as_an_image_whatever_number_of_frames_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    read = dicom._dataset

    def counted(path: Path, *, pixels: bool = True) -> Any:
        reads.append(path)
        return read(path, pixels=pixels)

    monkeypatch.setattr(dicom, "_dataset", counted)
    times = []
    for frames in (2, 6):
        (tmp_path / str(frames) / "benign").mkdir(parents=True)
        clip(tmp_path / str(frames) / "benign" / "a.dcm", frames)
        reads.clear()
        found = check(tmp_path / str(frames), ["benign"], settings=settings(frames="all"))
        asked = DataSet("", 16, "letterbox", 0, found.images, (), (), ())
        loaded = ImageFolder(asked, tmp_path / str(frames), ("benign",)).load(found.images)
        assert len(loaded) == frames
        times.append(len(reads))
    assert times[0] == times[1] > 0


def test_evenly_spaced_frames_begin_and_end_inside() -> None:
    for n in range(1, 40):
        for wanted in range(1, 45):
            chosen = chosen_frames(n, wanted)
            assert chosen == sorted(set(chosen)) and len(chosen) == min(n, wanted)
            assert chosen[0] >= 0 and chosen[-1] < n


def test_one_mask_of_many_frames_is_left_out_unless_the_first_is_used(tmp_path: Path) -> None:
    (tmp_path / "benign").mkdir()
    pages = [Image.fromarray(np.roll(NOISE, 40 * i)) for i in range(3)]
    pages[0].save(tmp_path / "benign" / "a.tif", save_all=True, append_images=pages[1:])
    mask(tmp_path / "benign" / "a_mask.png")
    assert [len(image.masks) for image in scan(tmp_path, ["benign"]).images] == [1]
    found = scan(tmp_path, ["benign"], settings=settings(frames="middle"))
    assert [len(image.masks) for image in found.images] == [0]
    assert use_of(found)["benign/a_mask.png"] == "left out"


# ---- any folder ----


def contents(rng: random.Random) -> bytes:
    kind = rng.choice(["PNG", "GIF", "TIFF", "JPEG", "mask", "text", "noise", "torn", "empty"])
    if kind in ("text", "noise", "empty"):
        return {"text": b"hello", "noise": rng.randbytes(300), "empty": b""}[kind]
    pixels = np.frombuffer(rng.randbytes(48), np.uint8).reshape(6, 8)
    pixels = (pixels > 128) * np.uint8(255) if kind == "mask" else pixels
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG" if kind in ("mask", "torn") else kind)
    return file.getvalue()[:40] if kind == "torn" else file.getvalue()


WORDS = ("benign", "malignant", "train", "val", "test", "images", "masks", "__MACOSX", ".git", "a", "a_mask", "mask_a",
         "b", "b_GT", "b (1)", "._a", "x y", "é", "e\u0301", "Thumbs.db", "DATA", "z\u202e", "a\udc80")  # fmt: skip
SUFFIXES = ("", ".png", ".PNG", ".jpg", ".tif", ".dcm", ".txt", ".zip", ".xyz")


@pytest.mark.parametrize("seed", range(60))
def test_no_folder_loses_a_file_or_ends_in_a_traceback(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    top = tmp_path / "data"
    top.mkdir()
    for _ in range(rng.randint(1, 25)):
        folders = [rng.choice(WORDS) for _ in range(rng.randint(0, 3))]
        path = top.joinpath(*folders, rng.choice(WORDS) + rng.choice(SUFFIXES))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if rng.random() < 0.1:
                path.symlink_to(rng.choice([tmp_path / "none", top, tmp_path, top / "benign"]))
            else:
                path.write_bytes(contents(rng))
        except OSError:
            continue  # the name is a folder's already
    asked = settings(
        masks=rng.choice([None, [], ["*_mask", "masks/"]]), links=rng.random() < 0.5,
        frames=rng.choice(["first", "all", 2]), split=rng.choice(["shares", "folders"]),
    )  # fmt: skip
    for classes in (None, ["benign", "malignant"]):
        try:
            found = scan(top, classes, settings=asked)
        except UserError as error:
            str(error).encode()  # it can be printed
            continue
        to_json({"account": found.account.to_dict()})
        if not asked.links:
            in_folder = sum(len(names) + sum((Path(at) / d).is_symlink() for d in folders)
                            for at, folders, names in os.walk(top))  # fmt: skip
            assert len(found.account.files) == in_folder
