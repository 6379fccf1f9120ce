"""Reading a folder: every kind of file becomes 8-bit grey, and of DICOM nothing but pixels comes
out."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import ExifTags, Image
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage

from busray.data.pixels import read_grey, read_mask, read_rgb
from busray.data.read import class_names, scan
from busray.identity import sha256_file
from busray.records import UserError


@pytest.fixture
def grey(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (40, 56), dtype=np.uint8)


def write_dicom(path: Path, pixels: np.ndarray, **elements: Any) -> None:
    """An uncompressed DICOM file of [h, w] or [h, w, 3] with a patient's name in it."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UltrasoundImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.PatientName = "Roentgen^Bertha"
    dataset.PatientID = "ID-4711"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)


def voi_lut(table: np.ndarray, first: int = 0, vr: str = "US", **window: Any) -> dict[str, Any]:
    """The elements of a table for values from first on; its dtype says how many bits an entry
    has."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [len(table) % 2**16, first, 8 * table.dtype.itemsize])
    item.add_new("LUTData", vr, table.astype("<u2").tobytes() if vr == "OW" else table.tolist())
    return {"VOILUTSequence": pydicom.Sequence([item]), **window}


# ---- pixels ----


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.PNG"])
def test_grey_files_are_read_as_they_are(tmp_path: Path, grey: np.ndarray, name: str) -> None:
    Image.fromarray(grey).save(tmp_path / name)
    assert np.array_equal(read_grey(tmp_path / name), grey)
    assert read_rgb(tmp_path / name) is None


def test_jpeg_is_read_with_the_loss_of_jpeg_alone(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(80)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_grey(tmp_path / "a.jpg").astype(int) - smooth).max() <= 4


def test_16_bit_grey_keeps_its_levels_over_the_whole_range(tmp_path: Path, grey: np.ndarray) -> None:
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode.startswith("I;16")
    assert np.array_equal(read_grey(tmp_path / "a.png"), grey)


def test_colour_becomes_luma_and_can_be_asked_for(tmp_path: Path) -> None:
    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[:4] = (255, 0, 0)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert (read_grey(tmp_path / "a.png")[:4] == 76).all()  # 0.299 * 255, ITU-R 601
    found = read_rgb(tmp_path / "a.png")
    assert found is not None and np.array_equal(found, rgb)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_pixels_in_a_colour_file_stay_what_they_are(tmp_path: Path, grey: np.ndarray, mode: str) -> None:
    Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
    assert np.array_equal(read_grey(tmp_path / "a.png"), grey)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_a_picture_is_turned_upright_by_its_exif_orientation(tmp_path: Path, name: str, mode: str) -> None:
    if name == "a.jpg" and mode == "I;16":
        pytest.skip("JPEG has 8 bits")
    upright = np.zeros((48, 32), np.uint8)
    upright[:8] = 255  # the skin, above
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned a quarter to the right
    (tmp_path / "benign").mkdir()
    for stem in ("a", "a_mask"):
        lying = np.rot90(upright)
        picture = Image.fromarray(lying.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(lying)
        path = tmp_path / "benign" / name.replace("a", stem, 1)
        picture.convert(mode).save(path, exif=exif)
    path = tmp_path / "benign" / name
    (image,) = scan(tmp_path, ["benign"]).images
    assert (image.width, image.height) == (32, 48)
    assert np.abs(read_grey(path).astype(int) - upright).max() <= 8
    assert np.array_equal(read_mask(tmp_path / image.masks[0]), upright > 127)
    rgb = read_rgb(path)
    assert rgb is None if mode != "RGB" else rgb is not None and np.abs(rgb[..., 0].astype(int) - upright).max() <= 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB"])
def test_what_is_transparent_is_black(tmp_path: Path, mode: str) -> None:
    """In the last three modes one colour is marked as transparent."""
    pixels = np.full((4, 6), 100, np.uint8)
    pixels[:, :3] = 240
    picture = Image.fromarray(pixels)
    if mode in ("RGBA", "LA"):
        picture = picture.convert(mode)
        picture.putalpha(Image.fromarray(np.where(pixels == 240, 0, 255).astype(np.uint8)))
        picture.save(tmp_path / "a.png")
    elif mode == "PA":
        picture = picture.convert("P")
        picture.save(tmp_path / "a.png", transparency=bytes(0 if value == 240 else 255 for value in range(256)))
    else:
        marked = (240, 240, 240) if mode == "RGB" else 240
        picture.convert(mode).save(tmp_path / "a.png", transparency=marked)
    expected = np.where(pixels == 240, 0, 100)
    assert np.array_equal(read_grey(tmp_path / "a.png"), expected)
    rgb = read_rgb(tmp_path / "a.png")
    assert rgb is None if mode in ("L", "LA") else rgb is not None and np.array_equal(rgb[..., 1], expected)


def test_what_is_half_transparent_is_half_as_bright(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (200, 200, 200, 128)).save(tmp_path / "a.png")
    assert np.abs(read_grey(tmp_path / "a.png").astype(int) - 100).max() <= 1


def test_masks_are_foreground_above_half(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "b.png")
    assert read_mask(tmp_path / "a.png").tolist() == [[False, False, True, True]]
    assert read_mask(tmp_path / "b.png").tolist() == [[False, True]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("value", [1, 2, 127, 255])
def test_a_mask_of_zero_and_one_other_value_is_that_values(tmp_path: Path, dtype: type, value: int) -> None:
    lesion = np.zeros((6, 8), bool)
    lesion[2:4, 3:6] = True
    Image.fromarray((lesion * value).astype(dtype)).save(tmp_path / "a.tif")
    assert np.array_equal(read_mask(tmp_path / "a.tif"), lesion)


def test_a_mask_in_a_palettes_dark_colour_is_read(tmp_path: Path) -> None:
    lesion = np.eye(4, dtype=np.uint8)
    picture = Image.fromarray(lesion, "P")
    picture.putpalette([0, 0, 0, 128, 0, 0])
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png"), lesion > 0)


@pytest.mark.parametrize("dtype, top", [(np.uint8, 255), (np.uint16, 65535)])
def test_an_empty_mask_is_empty_and_one_of_several_dark_values_or_of_no_background_says_nothing(
    tmp_path: Path, dtype: type, top: int
) -> None:
    for values in ([0, 1, 2], [3, 3, 3]):
        Image.fromarray(np.array([values], dtype)).save(tmp_path / "a.png")
        with pytest.raises(UserError, match=f"^values up to {max(values)}, not 0 and {top}$"):
            read_mask(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 4), dtype)).save(tmp_path / "a.png")
    assert not read_mask(tmp_path / "a.png").any()


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floating_point_pixels_are_refused_with_the_mend(tmp_path: Path, top: float) -> None:
    (tmp_path / "benign").mkdir()
    ramp = np.linspace(0, top, 32, dtype=np.float32).reshape(4, 8)
    Image.fromarray(ramp).save(tmp_path / "benign" / "a.tif")
    found = scan(tmp_path, ["benign"])
    assert found.images == ()
    ((file, reason),) = found.unreadable
    assert file == "benign/a.tif"
    assert "floating-point" in reason and "save it as 8-bit or 16-bit grey" in reason


def test_a_picture_of_absurd_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("busray.data.pixels.MAX_PIXELS", 100)
    Image.new("L", (12, 12)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="12 x 12 pixels are more than 100"):
        read_grey(tmp_path / "a.png")


# ---- DICOM ----


def test_a_dicom_without_a_window_is_read_over_the_range_of_its_bits(tmp_path: Path, grey: np.ndarray) -> None:
    write_dicom(tmp_path / "a.dcm", grey // 2)
    write_dicom(tmp_path / "b.dcm", grey.astype(np.uint16) * 16, BitsStored=12, HighBit=11)
    assert np.array_equal(read_grey(tmp_path / "a.dcm"), grey // 2)
    assert np.abs(read_grey(tmp_path / "b.dcm").astype(int) - grey).max() <= 1


def test_a_dicoms_window_decides_its_grey_and_not_the_images_extremes(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(90, 111, dtype=np.uint8), (4, 1))  # a flat scan: a tenth of its window
    write_dicom(tmp_path / "a.dcm", ramp, WindowCenter=128, WindowWidth=256)
    assert np.abs(read_grey(tmp_path / "a.dcm").astype(int) - ramp).max() <= 1
    write_dicom(tmp_path / "b.dcm", ramp, WindowCenter=100, WindowWidth=10)
    seen = read_grey(tmp_path / "b.dcm")[0]
    assert (seen[:5] == 0).all() and (seen[-5:] == 255).all() and 100 < seen[10] < 156


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_dicoms_table_decides_its_grey(tmp_path: Path, grey: np.ndarray, bits: int, vr: str) -> None:
    identity = (np.arange(256) * (257 if bits == 16 else 1)).astype(f"u{bits // 8}")
    write_dicom(tmp_path / "a.dcm", grey, **voi_lut(identity, vr=vr))
    write_dicom(tmp_path / "b.dcm", grey, **voi_lut(identity[::-1], vr=vr, WindowCenter=128, WindowWidth=2))
    write_dicom(tmp_path / "c.dcm", grey, **voi_lut(identity[::2], 64, vr=vr))
    assert np.array_equal(read_grey(tmp_path / "a.dcm"), grey)
    assert np.array_equal(read_grey(tmp_path / "b.dcm"), 255 - grey)
    moved = (grey.astype(int) - 64).clip(0, 127) * 2 / 254 * 255
    assert np.abs(read_grey(tmp_path / "c.dcm") - moved).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("stored", [12, 16])
def test_a_table_of_more_values_than_an_entry_can_say_is_read_whole(
    tmp_path: Path, grey: np.ndarray, bits: int, stored: int
) -> None:
    table = (np.arange(2**stored) >> (stored - 8)).astype(f"u{bits // 8}")
    deep = grey.astype(np.uint16) << (stored - 8)
    write_dicom(tmp_path / "a.dcm", deep, BitsStored=stored, HighBit=stored - 1, **voi_lut(table, vr="OW"))
    assert np.array_equal(read_grey(tmp_path / "a.dcm"), grey)


def test_half_a_window_or_half_a_table_is_none(tmp_path: Path, grey: np.ndarray) -> None:
    write_dicom(tmp_path / "a.dcm", grey, WindowWidth=10)
    half = voi_lut(np.arange(256, dtype=np.uint8))
    del half["VOILUTSequence"][0].LUTData
    write_dicom(tmp_path / "b.dcm", grey, **half)
    assert np.array_equal(read_grey(tmp_path / "a.dcm"), grey)
    assert np.array_equal(read_grey(tmp_path / "b.dcm"), grey)


def test_signed_dicom_values_and_a_rescale_are_read_over_their_range(tmp_path: Path, grey: np.ndarray) -> None:
    write_dicom(tmp_path / "a.dcm", (grey.astype(np.int16) - 128).astype(np.int8))
    write_dicom(tmp_path / "b.dcm", grey, RescaleSlope=2, RescaleIntercept=-100, RescaleType="US")
    assert np.array_equal(read_grey(tmp_path / "a.dcm"), grey)
    assert np.array_equal(read_grey(tmp_path / "b.dcm"), grey)


def test_an_inverted_dicom_is_turned_over(tmp_path: Path, grey: np.ndarray) -> None:
    write_dicom(tmp_path / "a.dcm", grey, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_grey(tmp_path / "a.dcm"), 255 - grey)


def test_the_first_frame_of_a_dicom_clip_is_read(tmp_path: Path, grey: np.ndarray) -> None:
    write_dicom(tmp_path / "a.dcm", grey, NumberOfFrames=2)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.PixelData = np.stack([grey, 255 - grey]).tobytes()
    dataset.save_as(tmp_path / "a.dcm")
    assert np.array_equal(read_grey(tmp_path / "a.dcm"), grey)


def test_a_colour_dicom_shows_its_colours(tmp_path: Path) -> None:
    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[:4] = (255, 0, 0)
    write_dicom(tmp_path / "a.dcm", rgb)
    assert (read_grey(tmp_path / "a.dcm")[:4] == 76).all()
    found = read_rgb(tmp_path / "a.dcm")
    assert found is not None and np.array_equal(found, rgb)


def test_a_grey_dicom_in_luma_and_chroma_stays_grey(tmp_path: Path, grey: np.ndarray) -> None:
    ybr = np.stack([grey, np.full_like(grey, 128), np.full_like(grey, 128)], axis=-1)
    write_dicom(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    assert np.abs(read_grey(tmp_path / "a.dcm").astype(int) - grey).max() <= 1


def test_a_dicom_with_a_palette_is_looked_up_in_it(tmp_path: Path, grey: np.ndarray) -> None:
    table = np.arange(255, -1, -1).astype(np.uint8).tobytes()
    colours = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour in ("Red", "Green", "Blue")
        for part, value in (("Data", table), ("Descriptor", [256, 0, 8]))
    }
    write_dicom(tmp_path / "a.dcm", grey, PhotometricInterpretation="PALETTE COLOR", **colours)
    assert np.abs(read_grey(tmp_path / "a.dcm").astype(int) - (255 - grey)).max() <= 1


def test_a_dicom_leaves_its_identifiers_behind(tmp_path: Path, grey: np.ndarray) -> None:
    (tmp_path / "benign").mkdir()
    write_dicom(tmp_path / "benign" / "good.dcm", grey)
    write_dicom(tmp_path / "benign" / "torn.dcm", grey, Rows=400)
    write_dicom(tmp_path / "benign" / "window.dcm", grey, WindowCenter=1, WindowWidth=-5)
    found = scan(tmp_path, ["benign"])
    assert [image.file for image in found.images] == ["benign/good.dcm"]
    assert found.images[0].mode == "DICOM"
    assert [file for file, _ in found.unreadable] == ["benign/torn.dcm", "benign/window.dcm"]
    assert "Roentgen" not in repr(found)
    assert "4711" not in repr(found)


def test_what_pydicom_says_of_a_broken_file_is_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benign").mkdir()
    write_dicom(tmp_path / "benign" / "a.dcm", np.zeros((4, 4), np.uint8))

    def complain(path: Path, **options: Any) -> None:
        raise ValueError("invalid value for PN: Roentgen^Bertha")

    monkeypatch.setattr(pydicom, "dcmread", complain)
    ((file, reason),) = scan(tmp_path, ["benign"]).unreadable
    assert file == "benign/a.dcm"
    assert reason.startswith("ValueError: pydicom cannot decode it")


# ---- folders ----


def save(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (10 + i, 8)).save(folder / name)


def test_masks_go_with_their_image(tmp_path: Path) -> None:
    save(tmp_path, "benign/b (1).png", "benign/b (1)_mask.png", "benign/b (1)_mask_1.png", "benign/b (2).png")
    one, two = scan(tmp_path, ["benign"]).images
    assert one.file == "benign/b (1).png"
    assert one.masks == ("benign/b (1)_mask.png", "benign/b (1)_mask_1.png")
    assert two.masks == ()


def test_a_mask_without_an_image_is_told(tmp_path: Path) -> None:
    save(tmp_path, "benign/a.png", "benign/a_mask.png", "benign/b_mask.png")
    assert scan(tmp_path, ["benign"]).stray_masks == ("benign/b_mask.png",)


def test_a_record_holds_size_class_and_digest(tmp_path: Path) -> None:
    save(tmp_path, "benign/a.png")
    (image,) = scan(tmp_path, ["benign"]).images
    assert (image.width, image.height, image.class_name, image.mode) == (10, 8, "benign", "L")
    assert image.sha256 == sha256_file(tmp_path / "benign" / "a.png")


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    save(tmp_path, "benign/a.png")
    (tmp_path / "benign" / "notes.txt").write_text("no image")
    (tmp_path / "benign" / "folder.png").mkdir()
    assert [image.file for image in scan(tmp_path, ["benign"]).images] == ["benign/a.png"]


def test_images_of_all_classes_come_sorted_by_file(tmp_path: Path) -> None:
    save(tmp_path, "malignant/a.png", "benign/b.png", "benign/a.png")
    files = [image.file for image in scan(tmp_path, ["malignant", "benign"]).images]
    assert files == ["benign/a.png", "benign/b.png", "malignant/a.png"]


def test_class_folders_are_found_and_hidden_ones_are_not(tmp_path: Path) -> None:
    save(tmp_path, "b/a.png", "a/a.png", ".cache/a.png")
    assert class_names(tmp_path) == ["a", "b"]


def test_folders_that_hold_nothing_to_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        class_names(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is empty"):
        class_names(tmp_path)
    (tmp_path / "benign").mkdir()
    with pytest.raises(UserError, match="class benign: no images in"):
        scan(tmp_path, ["benign"])
    with pytest.raises(UserError, match=r"class malignant: no folder .*; folders there: benign"):
        scan(tmp_path, ["malignant"])


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "data/benign/a.png", "secret/b.png")
    (tmp_path / "data" / "benign" / "b.png").symlink_to(tmp_path / "secret" / "b.png")
    with pytest.raises(UserError, match=r"b\.png: leads out of the data folder"):
        scan(tmp_path / "data", ["benign"])


# ---- metadata ----


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path, "data/benign/a.png", "data/benign/b.png")
    return tmp_path / "data"


def metadata(folder: Path, text: str | bytes) -> Path:
    path = folder.parent / "metadata.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_metadata_brings_groups_and_columns(folder: Path) -> None:
    path = metadata(folder, "file,group,birads\nbenign/a.png,p1,4a\nbenign/b.png,,\n")
    one, two = scan(folder, ["benign"], path).images
    assert (one.group, one.columns) == ("p1", {"birads": "4a"})
    assert (two.group, two.columns) == (None, {"birads": ""})


def test_metadata_from_a_spreadsheet_is_read(folder: Path) -> None:
    path = metadata(folder, b'\xef\xbb\xbffile,device\r\nbenign/a.png,"A, new"\r\n')
    one, two = scan(folder, ["benign"], path).images
    assert one.columns == {"device": "A, new"}
    assert two.columns == {}


def test_spaces_around_names_and_values_of_metadata_are_no_part_of_them(folder: Path) -> None:
    text = "file, group ,birads\n benign/a.png, p1,4a \nbenign/b.png,p1 ,\n"
    one, two = scan(folder, ["benign"], metadata(folder, text)).images
    assert (one.group, one.columns) == ("p1", {"birads": "4a"})
    assert (two.group, two.columns) == ("p1", {"birads": ""})
    quoted = '"file", "group", "birads"\n"benign/a.png", "p1", "4a"\n"benign/b.png", "p1", ""\n'
    assert scan(folder, ["benign"], metadata(folder, quoted)).images == (one, two)


@pytest.mark.parametrize(
    "header, said",
    [
        ("file,Group", "'Group' must be spelt `group`"),
        (" FILE ,group", "'FILE' must be spelt `file`"),
        ("File,Group", "'File' must be spelt `file`, 'Group' must be spelt `group`"),
        ("file,group, group", "'group' is there twice"),
        ("file,birads,birads", "'birads' is there twice"),
        ("file,File,birads,birads", "'File' must be spelt `file`, 'birads' is there twice"),
    ],
)
def test_a_header_that_would_switch_the_patient_rule_off_is_refused(folder: Path, header: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        scan(folder, ["benign"], metadata(folder, f"{header}\nbenign/a.png,p1,x,x\nbenign/b.png,p1,x,x\n"))
    assert str(caught.value).startswith("dataset.metadata: ")
    assert str(caught.value).endswith(f"header: {said}")


def test_empty_columns_of_a_spreadsheet_are_left_alone(folder: Path) -> None:
    one, _ = scan(folder, ["benign"], metadata(folder, "file,birads,,\nbenign/a.png,3,,\n")).images
    assert one.columns == {"birads": "3"}


@pytest.mark.parametrize(
    "text, said",
    [
        ("name\nx\n", "the column `file`"),
        ("", "the column `file`"),
        ("file\n", "at least one row"),
        ("file\nbenign/none.png\n", "'benign/none.png', which is not in"),
        ("group,file\np1\n", "names '', which is not in"),
        ("file,group\nbenign/a.png,p1\n", "has no row for 1 images, such as 'benign/b.png'"),
        ("file\nbenign/a.png\nbenign/a.png\n", "names 'benign/a.png' twice"),
        (b"file\nb\xff.png\n", "is not a CSV file in UTF-8"),
    ],
)
def test_metadata_that_does_not_fit_the_folder_is_named(folder: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        scan(folder, ["benign"], metadata(folder, text))
    assert str(caught.value).startswith("dataset.metadata: ")


def test_missing_metadata_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"dataset.metadata: .*none\.csv: No such file"):
        scan(folder, ["benign"], folder / "none.csv")
