"""Malicious files and names: none runs, fills memory or leads out of its folder; each is named."""

import contextlib
import json
import pickle
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, UltrasoundImageStorage
from safetensors.torch import save_file

from busray.cli import main
from busray.config import Base, Config
from busray.config_file import validate
from busray.data.pixels import MAX_PIXELS, read_grey, read_rgb
from busray.data.read import scan
from busray.layout import commit_key, data_key
from busray.model.adapters import LORA_FILE, load_adapters
from busray.model.base import TINY, base_folder, identify_base, load_pipeline
from busray.places import hidden_character
from busray.records import Shard, UserError
from busray.storage import Store
from tests.support.adapters import check_adapters

HIDDEN = {
    "right-to-left override": "be\u202enign",
    "zero-width space": "be\u200bnign",
    "byte-order mark": "\ufeffbenign",
    "new line": "be\nnign",
    "escape": "be\x1b[31mnign",
    "line separator": "be\u2028nign",
    "surrogate": "be\udc80nign",
    "not composed": "beni\u0301gn",
}


# ---- pickles ----


class Trap:
    """Unpickling it makes the canary file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that must never come to be; the traps below do make it where they are unpickled."""
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Trap(path)))  # noqa: S301
    assert path.exists()
    path.unlink()
    return path


def traps(canary: Path) -> dict[str, bytes]:
    """A pickle, and torch's two file forms of it."""
    zipped, legacy = canary.with_name("zipped"), canary.with_name("legacy")
    torch.save({"weight": Trap(canary)}, zipped)
    torch.save({"weight": Trap(canary)}, legacy, _use_new_zipfile_serialization=False)
    return {"plain": pickle.dumps(Trap(canary)), "zipped": zipped.read_bytes(), "legacy": legacy.read_bytes()}


@pytest.mark.parametrize("form", ["plain", "zipped", "legacy"])
def test_a_pickle_among_the_adapters_never_runs(tmp_path: Path, canary: Path, form: str) -> None:
    trap = traps(canary)[form]
    base = identify_base(Base())
    for name in ("pytorch_lora_weights.bin", "learned_embeds.bin", "us-benign.pt", "optimizer.pt"):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_bytes(trap)
    with pytest.raises(UserError, match="pickles are never loaded"):
        check_adapters(tmp_path / "a", "lora+ti", {"benign": "<us-benign>"}, base, None)
    (tmp_path / "a" / LORA_FILE).write_bytes(trap)  # under the name of the safe form
    with pytest.raises(UserError, match="no safetensors file"):
        check_adapters(tmp_path / "a", "lora", {}, base, None)
    with pytest.raises(Exception):  # noqa: B017
        load_adapters(load_pipeline(Base()), tmp_path / "a", "lora", {})
    assert not canary.exists()


def test_a_pickle_in_a_base_never_runs(tmp_path: Path, canary: Path) -> None:
    base = shutil.copytree(TINY, tmp_path / "base")
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        (base / part / f"{name}.bin").write_bytes(traps(canary)["zipped"])
    settings = Base(path=str(base))
    load_pipeline(settings)  # beside the safe form they are not looked at
    assert not any(file.endswith(".bin") for file in identify_base(settings).files)
    for weights in (base / "unet").glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(UserError, match=r"pickled weights \(\.bin, \.ckpt\) are not loaded"):
        base_folder(settings)
    assert not canary.exists()


@pytest.mark.parametrize("form", ["plain", "zipped", "legacy"])
def test_a_pickle_among_the_images_never_runs_and_is_named(tmp_path: Path, canary: Path, form: str) -> None:
    folder = tmp_path / "data" / "benign"
    folder.mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "good.png")
    for name in ("a.png", "b.tif", "c.dcm", "d.pt", "e.bin", "f.npy", "g.pkl"):
        (folder / name).write_bytes(traps(canary)[form])
    listing = scan(folder.parent, ["benign"])
    assert [image.file for image in listing.images] == ["benign/good.png"]
    assert [file for file, _ in listing.unreadable] == ["benign/a.png", "benign/b.tif", "benign/c.dcm"]
    assert not canary.exists()


# ---- code in a base ----


@pytest.mark.parametrize("part", ["unet", "image_encoder", "_class_name"])
def test_code_that_a_base_brings_never_runs(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    base = shutil.copytree(TINY, tmp_path / "base")
    code = f"from pathlib import Path\nPath({str(canary)!r}).touch()\n\nclass Trap:\n    pass\n"
    for folder in (tmp_path, base, base / "unet"):
        (folder / "trap_of_ours.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))  # as a job's working folder is
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps({**index, part: ["trap_of_ours", "Trap"]}))
    with contextlib.suppress(ValueError, UserError):  # a part of another library or class; that of the whole is ignored
        load_pipeline(Base(path=str(base)))
    assert not canary.exists()


def test_a_hub_base_is_pinned_by_a_commit_hash_and_nothing_else() -> None:
    for revision in ("main", "v1.5", "451f4fe", "451F4FE16113BFF5A5D2269ED5AD43B0592E9A14", "../" * 13 + "x"):
        with pytest.raises(UserError, match="pinned by its commit hash"):
            validate({**MINIMAL, "base": {"path": "a/b", "revision": revision}})


# ---- decompression bombs ----


def png_header(path: Path, width: int, height: int, bits: int = 8) -> None:
    """A PNG of a few hundred bytes whose header claims this size; its pixels are missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_193, 10_000, 14_000, 60_000])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_bomb_is_refused_by_name_before_it_is_decoded(tmp_path: Path, side: int, bits: int) -> None:
    """Below and above Pillow's warning (89 million pixels) and its error (twice that)."""
    folder = tmp_path / "benign"
    folder.mkdir()
    png_header(folder / "bomb.png", side, side, bits)
    ((file, reason),) = scan(tmp_path, ["benign"]).unreadable
    assert file == "benign/bomb.png"
    assert "bomb" in reason.lower()
    for read in (read_grey, read_rgb):
        with pytest.raises((UserError, Image.DecompressionBombError)):
            read(folder / "bomb.png")


def dicom(path: Path, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> None:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UltrasoundImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 8, 8, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = bytes(range(64))
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)


def test_a_dicom_bomb_is_refused_by_name_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydicom.pixels, "pixel_array", lambda *_, **__: pytest.fail("decoded"))
    (tmp_path / "benign").mkdir()
    dicom(tmp_path / "benign" / "bomb.dcm", Rows=60_000, Columns=60_000)
    ((file, reason),) = scan(tmp_path, ["benign"]).unreadable
    assert file == "benign/bomb.dcm"
    assert "60000 x 60000 pixels" in reason


def test_a_deflated_dicom_is_refused_before_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benign").mkdir()
    dicom(tmp_path / "benign" / "bomb.dcm", DeflatedExplicitVRLittleEndian, ImageComments="x" * 10_000)
    monkeypatch.setattr(zlib, "decompress", lambda *_, **__: pytest.fail("inflated"))
    ((_, reason),) = scan(tmp_path, ["benign"]).unreadable
    assert "deflated" in reason


def test_of_a_dicom_clip_only_the_first_frame_is_decoded(tmp_path: Path) -> None:
    frames = 400
    dicom(tmp_path / "a.dcm", NumberOfFrames=frames, PixelData=bytes(range(64)) + bytes(64 * (frames - 1)))
    assert read_grey(tmp_path / "a.dcm").ravel().tolist() == list(range(64))
    assert 8 * 8 * frames < MAX_PIXELS


# ---- names ----

MINIMAL: dict[str, Any] = {"dataset": {"path": "data"}, "classes": {"benign": {}}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "benign").mkdir(parents=True)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "data" / "benign" / "a.png")
    return tmp_path / "data"


@pytest.mark.parametrize("name", HIDDEN.values(), ids=HIDDEN.keys())
def test_names_that_do_not_show_are_refused_everywhere(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hidden_character(name)
    for tree in (
        {**MINIMAL, "classes": {name: {}}},
        {**MINIMAL, "classes": {"benign": {"token": f"<{name}>"}}},
        {**MINIMAL, "name": name},
        {**MINIMAL, "output": f"runs/{name}"},
        {**MINIMAL, "output": f"s3://bucket/{name}"},
        {**MINIMAL, "dataset": {"path": name}},
        {**MINIMAL, "adapters": {"path": name}},
    ):
        with pytest.raises(UserError) as caught:
            validate(tree)
        assert str(caught.value).count("\n") <= 1
    metadata = folder.parent / "m.csv"
    metadata.write_text(f'file\n"benign/{name}.png"\n', encoding="utf-8", errors="surrogateescape", newline="")
    with pytest.raises(UserError, match=r"dataset\.metadata"):
        scan(folder, ["benign"], metadata)
    (folder / name).mkdir()
    shutil.copy(folder / "benign" / "a.png", folder / name / "a.png")
    assert main(["check", str(folder)]) == 2
    message = capsys.readouterr().err
    assert "rename it" in message
    assert name not in message


@pytest.mark.parametrize("name", ["Läsion", "乳腺", "غدة", "b-1_2.x", "Ⅳ"])
def test_visible_names_of_any_script_are_no_worry(name: str) -> None:
    assert hidden_character(name) is None


@pytest.mark.parametrize("file", ["./benign/a.png", "benign//a.png", "benign/./a.png"])
def test_a_path_of_the_metadata_is_read_as_the_file_that_it_means(folder: Path, file: str) -> None:
    metadata = folder.parent / "m.csv"
    metadata.write_text(f"file,probe\n{file},linear\n")
    columns = {image.file: image.columns for image in scan(folder, ["benign"], metadata).images}
    assert columns["benign/a.png"] == {"probe": "linear"}


@pytest.mark.parametrize("file", ["../a.png", "benign/../benign/a.png", "/etc/hostname"])
def test_metadata_that_leads_out_of_the_folder_or_around_it_is_refused(folder: Path, file: str) -> None:
    shutil.copy(folder / "benign" / "a.png", folder.parent / "a.png")
    metadata = folder.parent / "m.csv"
    metadata.write_text(f"file\n{file}\n")
    with pytest.raises(UserError, match="write it as CLASS/NAME, below the data folder"):
        scan(folder, ["benign"], metadata)


@pytest.mark.parametrize("name", ["../x", "..", ".", "/x", "a/b", "a\\b", "", " ", "-x", "x" * 65, "all"])
def test_a_class_name_that_is_no_plain_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no class name"):
        validate({**MINIMAL, "classes": {name: {}}})


@pytest.mark.parametrize("token", ["<../x>", "</x>", "<a/b>", "<>", "x", "<.x>", "<A>"])
def test_a_token_that_could_name_another_file_is_refused(token: str) -> None:
    with pytest.raises(UserError, match=r"classes\.benign\.token"):
        validate({**MINIMAL, "classes": {"benign": {"token": token}}})


@pytest.mark.parametrize("name", ["../x", "..", "a/b", ""])
def test_a_run_name_that_leaves_its_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="name: a run's name becomes a folder"):
        validate({**MINIMAL, "name": name})


def test_a_url_with_dots_is_refused() -> None:
    with pytest.raises(UserError, match=r"output: a URL with `\.\.` in it"):
        validate({**MINIMAL, "output": "s3://bucket/mine/../yours"})


@pytest.mark.parametrize("key", ["../x", "a/../x", "/etc/x", "a//b", "./a", ""])
def test_no_object_has_a_key_that_leaves_the_run(tmp_path: Path, key: str) -> None:
    store = Store(str(tmp_path / "run"))
    for act in (store.read, store.exists, lambda key: store.put_once(key, b"x"), lambda key: store.replace(key, b"x")):
        with pytest.raises(ValueError, match="not a key"):
            act(key)
    assert list(tmp_path.rglob("x")) == []


def test_keys_of_shards_are_plain_ascii_for_every_class_name_that_is_allowed() -> None:
    name = "A" + "z9_.-" * 12
    validate({**MINIMAL, "classes": {name: {"token": "<x>"}}})
    shard = Shard(name, 10**9, 10**5)
    for key in (commit_key(shard), data_key(shard, "0" * 64, ".parquet")):
        assert key.isascii() and ".." not in key.split("/")


# ---- links ----


def test_links_out_of_the_data_folder_are_refused_and_broken_ones_ignored(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(folder / "benign" / "a.png", outside / "secret.png")
    (folder / "benign" / "gone.png").symlink_to(outside / "none.png")
    (folder / "benign" / "beside.png").symlink_to(folder / "benign" / "a.png")
    assert [image.file for image in scan(folder, ["benign"]).images] == ["benign/a.png", "benign/beside.png"]
    for link, target in (("b.png", outside / "secret.png"), ("a_mask.png", outside / "secret.png")):
        (folder / "benign" / link).symlink_to(target)
        with pytest.raises(UserError, match="leads out of the data folder"):
            scan(folder, ["benign"])
        (folder / "benign" / link).unlink()
    (folder / "malignant").symlink_to(outside, target_is_directory=True)
    with pytest.raises(UserError, match="leads out of the data folder"):
        scan(folder, ["malignant"])


def test_a_config_that_would_be_code_is_data(tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"classes: !!python/object/apply:pathlib.Path.touch [{canary}]\n")
    assert main(["run", str(path)]) == 2
    assert not canary.exists()


def test_a_safetensors_file_that_lies_about_its_header_is_named(tmp_path: Path) -> None:
    save_file({"unet.x.lora.down.weight": torch.zeros(2, 2)}, tmp_path / LORA_FILE)
    good = (tmp_path / LORA_FILE).read_bytes()
    for bad in (struct.pack("<Q", 2**62) + good[8:], good[:-4], b"", good[:8] + b"[" * (len(good) - 8)):
        (tmp_path / LORA_FILE).write_bytes(bad)
        with pytest.raises(UserError, match="no safetensors file"):
            check_adapters(tmp_path, "lora", {}, identify_base(Base()), None)


def test_every_setting_for_a_path_or_url_is_checked() -> None:
    """A new setting whose name says that it is a place must be a Location, or be listed here."""
    not_locations = {"cluster.address"}  # a Ray address: busray writes nothing to it
    places = ("path", "output", "metadata", "inception", "dinov2", "external", "address")
    unchecked = set()
    groups = {"": Config} | {name: type(field.default) for name, field in Config.model_fields.items()}
    for group, model in groups.items():
        for name, field in getattr(model, "model_fields", {}).items():
            if name in places and "AfterValidator" not in str(field):
                unchecked.add(f"{group}.{name}".lstrip("."))
    assert unchecked == not_locations
