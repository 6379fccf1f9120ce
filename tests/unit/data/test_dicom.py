"""Of DICOM nothing but pixels comes out, and each failure has its true reason."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, UltrasoundImageStorage

from busray.data import dicom
from busray.data.pixels import Picture, Unreadable, describe, kind_of, read_grey, read_rgb
from busray.data.prepare import prepare
from busray.data.read import scan
from busray.records import to_json
from tests.support.planted import settings


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


def described(path: Path) -> Picture:
    found = describe(path)
    assert isinstance(found, Picture), found
    return found


def unreadable(path: Path, frame: int = 0) -> str:
    found = describe(path, frame)
    assert isinstance(found, Unreadable)
    return found.reason


def voi_lut(table: np.ndarray, first: int = 0, vr: str = "US", **window: Any) -> dict[str, Any]:
    """The elements of a table for values from first on; its dtype says how many bits an entry
    has."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [len(table) % 2**16, first, 8 * table.dtype.itemsize])
    item.add_new("LUTData", vr, table.astype("<u2").tobytes() if vr == "OW" else table.tolist())
    return {"VOILUTSequence": pydicom.Sequence([item]), **window}


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

    monkeypatch.setattr(pydicom.filereader, "read_partial", complain)
    ((file, reason),) = scan(tmp_path, ["benign"]).unreadable
    assert file == "benign/a.dcm"
    assert reason == "pydicom cannot read it (ValueError): it is damaged; export it again"


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
@pytest.mark.parametrize("bits", [8, 12])
def test_a_16_bit_dicom_that_holds_fewer_bits_is_read_by_those(
    tmp_path: Path, grey: np.ndarray, dtype: type, bits: int
) -> None:
    """As SimpleITK, 3D Slicer and dcmtk write 8-bit pictures."""
    values = grey.astype(dtype) * (1 if bits == 8 else 16)
    write_dicom(tmp_path / "a.dcm", values, RescaleSlope=1, RescaleIntercept=0)
    assert np.abs(read_grey(tmp_path / "a.dcm").astype(int) - grey).max() <= 1
    signed = "signed " if dtype == np.int16 else ""
    found = described(tmp_path / "a.dcm")
    assert (found.reading, found.odd) == (f"{bits} bits in 16-bit {signed}DICOM", "")


def test_signed_8_bits_in_16_are_read_over_their_range(tmp_path: Path, grey: np.ndarray) -> None:
    write_dicom(tmp_path / "a.dcm", grey.astype(np.int16) - 128)
    assert np.array_equal(read_grey(tmp_path / "a.dcm"), grey)


def test_8_bit_colours_in_16_are_read(tmp_path: Path, grey: np.ndarray) -> None:
    write_dicom(tmp_path / "a.dcm", np.stack([grey] * 3, axis=-1).astype(np.uint16))
    assert np.array_equal(read_grey(tmp_path / "a.dcm"), grey)


def test_a_window_is_kept_where_the_values_are_small(tmp_path: Path, grey: np.ndarray) -> None:
    write_dicom(tmp_path / "a.dcm", grey.astype(np.uint16), WindowCenter=32768, WindowWidth=65536)
    assert read_grey(tmp_path / "a.dcm").max() <= 1
    assert "the file has 16-bit DICOM" in described(tmp_path / "a.dcm").odd


def test_frames_of_a_clip_are_counted_and_read_by_number(tmp_path: Path, grey: np.ndarray) -> None:
    write_dicom(tmp_path / "a.dcm", grey, NumberOfFrames=2)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.PixelData = np.stack([grey, 255 - grey]).tobytes()
    dataset.save_as(tmp_path / "a.dcm")
    assert described(tmp_path / "a.dcm").frames == 2
    assert np.array_equal(read_grey(tmp_path / "a.dcm", 1), 255 - grey)
    assert unreadable(tmp_path / "a.dcm", 2) == "no frame 2: it has 2, counted from 0"


def test_a_dark_frame_of_a_deep_clip_is_read_as_its_other_frames_are(tmp_path: Path, grey: np.ndarray) -> None:
    frames = np.stack([np.zeros_like(grey), grey]).astype(np.uint16) * 16
    frames[0, 0] = 200
    write_dicom(tmp_path / "a.dcm", frames[0], NumberOfFrames=2)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.PixelData = frames.tobytes()
    dataset.save_as(tmp_path / "a.dcm")
    assert read_grey(tmp_path / "a.dcm", 0).max() == 12  # 200 of 4095, and not of 255
    assert np.abs(read_grey(tmp_path / "a.dcm", 1).astype(int) - grey).max() <= 1


@pytest.mark.parametrize("implicit", [True, False])
def test_a_dicom_without_preamble_and_meta_is_known_and_read(tmp_path: Path, grey: np.ndarray, implicit: bool) -> None:
    write_dicom(tmp_path / "whole.dcm", grey)
    dataset = pydicom.dcmread(tmp_path / "whole.dcm")
    del dataset.file_meta
    dataset.preamble = None
    pydicom.dcmwrite(tmp_path / "IM0001", dataset, implicit_vr=implicit, little_endian=True)
    assert (tmp_path / "IM0001").read_bytes()[128:132] != b"DICM"
    assert kind_of(tmp_path / "IM0001") == "dicom"
    assert np.array_equal(read_grey(tmp_path / "IM0001"), grey)


def test_a_dicom_without_a_transfer_syntax_is_read(tmp_path: Path, grey: np.ndarray) -> None:
    write_dicom(tmp_path / "whole.dcm", grey)
    dataset = pydicom.dcmread(tmp_path / "whole.dcm")
    del dataset.file_meta.TransferSyntaxUID
    dataset.save_as(tmp_path / "a.dicom", implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert kind_of(tmp_path / "a.dicom") == "dicom"
    assert np.array_equal(read_grey(tmp_path / "a.dicom"), grey)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"WindowWidth": 0, "WindowCenter": 1}, "its window is 0 wide (WindowWidth) and must be at least 1"),
        ({"BitsStored": 20}, "BitsStored is 20, BitsAllocated 8: they cannot both be true"),
        ({"Rows": 400}, "it is cut off or says a wrong size: 2240 bytes of pixels, and its size needs 22400"),
        ({"Rows": None}, "it does not say Rows, without which"),
        ({"PixelData": None}, "it has no pixels (Ultrasound Image Storage)"),
        ({"PixelData": b""}, "its pixels (PixelData) are empty"),
        ({"syntax": "1.2.840.10008.1.2.4.102"}, "it is a video (MPEG-4 AVC/H.264 High Profile / Level 4.1)"),
        ({"syntax": "1.2.840.10008.1.2.4.201"}, "no decoder is installed: pip install pylibjpeg pylibjpeg-openjpeg"),
        ({"syntax": "1.2.840.10008.1.2.4.50"}, "its pixels cannot be decoded (JPEG Baseline (Process 1), pillow: "),
        ({"Rows": 0}, "it says 56 columns and 0 rows"),
        ({"BitsAllocated": 12}, "BitsAllocated is 12"),
        ({"PhotometricInterpretation": "ID-4711"}, "PhotometricInterpretation is none that DICOM defines"),
        ({"SamplesPerPixel": 3}, "it says MONOCHROME2 and 3 values a pixel"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "it has no table of its colours"),
        ({"Rows": 10}, "it has pixels for 4 frames and says 1 (NumberOfFrames)"),
        ({"BitsStored": 6}, "BitsStored is 6, and 76% of its values need more"),
        ({"syntax": "1.2.3.4"}, "its transfer syntax (TransferSyntaxUID) is none that DICOM defines"),
    ],
)
def test_each_failure_of_a_dicom_has_its_true_reason(
    tmp_path: Path, grey: np.ndarray, change: dict[str, Any], said: str
) -> None:
    write_dicom(tmp_path / "a.dcm", grey)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    for name, value in change.items():
        if name == "syntax":
            dataset.file_meta.TransferSyntaxUID = value
            dataset.PixelData = encapsulate([b"\xff\xd8 no picture "])
            dataset["PixelData"].is_undefined_length = True
        elif value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(tmp_path / "a.dcm", implicit_vr=False, little_endian=True)
    assert kind_of(tmp_path / "a.dcm") == "dicom"
    reason = unreadable(tmp_path / "a.dcm")
    assert said in reason
    assert "4711" not in reason and "Roentgen" not in reason


@pytest.mark.parametrize("begins", ["\2\0\0\0", "\x08\0\0\0", "\x08\0\5\0"])
def test_a_file_of_numbers_is_not_searched_for_dicom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    def searched(path: Path) -> bool:
        raise AssertionError("pydicom would read all of it")

    monkeypatch.setattr(dicom, "_is_image", searched)
    (tmp_path / "a.bin").write_bytes(begins.encode("latin-1") + b"\0\0\1\0" * 100)
    assert kind_of(tmp_path / "a.bin") is None


def test_a_dicom_that_ends_in_zeros_is_said_to_be_not_whole(tmp_path: Path, grey: np.ndarray) -> None:
    write_dicom(tmp_path / "a.dcm", grey)
    whole = (tmp_path / "a.dcm").read_bytes()
    for kept in (132, whole.index(b"Roentgen")):
        (tmp_path / "a.dcm").write_bytes(whole[:kept] + bytes(len(whole) * 3))
        assert "it was not copied to its end" in unreadable(tmp_path / "a.dcm")


def test_compressed_pixels_without_a_transfer_syntax_are_refused(tmp_path: Path, grey: np.ndarray) -> None:
    write_dicom(tmp_path / "a.dcm", grey)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.PixelData = encapsulate([b"\xff\xd8 no picture "])
    dataset["PixelData"].is_undefined_length = True
    del dataset.file_meta.TransferSyntaxUID
    dataset.save_as(tmp_path / "a.dcm", implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert "no transfer syntax (TransferSyntaxUID), and its pixels are compressed" in unreadable(tmp_path / "a.dcm")


def test_a_decoder_that_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders import gdcm as plugin

    path = Path(pydicom.__file__).parent / "data" / "test_files" / "MR_small_jpeg_ls_lossless.dcm"
    if not path.is_file():
        pytest.skip(f"pydicom came without {path.name}")
    decoder = get_decoder(JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"gdcm": ("gdcm>=3.0.10",)})
    assert unreadable(path).endswith("no decoder is installed: pip install 'busray[dicom]'")
    monkeypatch.undo()
    if plugin.HAVE_GDCM:
        assert described(path).width == 64


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_jpeg_lossless_and_jpeg_ls_give_the_same_pixels(
    tmp_path: Path, grey: np.ndarray, syntax: str, dtype: type
) -> None:
    gdcm = pytest.importorskip("gdcm", reason="the extra busray[dicom] is not installed")
    values = grey.astype(dtype) * (1 if dtype == np.uint8 else 257)
    write_dicom(tmp_path / "a.dcm", values, PatientName="", PatientID="")
    reader = gdcm.ImageReader()
    reader.SetFileName(str(tmp_path / "a.dcm"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(tmp_path / "b.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert np.array_equal(read_grey(tmp_path / "b.dcm"), read_grey(tmp_path / "a.dcm"))


def test_pillow_decodes_what_it_can_so_that_pixels_do_not_depend_on_the_extra() -> None:
    from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit

    assert {dicom._decoder(JPEGBaseline8Bit), dicom._decoder(JPEG2000Lossless)} == {"pillow"}


def test_who_is_shown_is_never_printed(tmp_path: Path, grey: np.ndarray) -> None:
    write_dicom(tmp_path / "a.dcm", grey, StudyInstanceUID="1.2.4711")
    found = described(tmp_path / "a.dcm")
    assert found.who == ("\0ID-4711", "1.2.4711")
    assert "4711" not in repr(found) and "4711" not in str(found)


def test_an_odd_value_of_a_patient_is_not_warned_of(
    tmp_path: Path, grey: np.ndarray, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    write_dicom(tmp_path / "a.dcm", grey)
    content = (tmp_path / "a.dcm").read_bytes().replace(b"ID-4711 ", b"ID-4711\xe4")
    (tmp_path / "a.dcm").write_bytes(content)
    described(tmp_path / "a.dcm")
    said = capfd.readouterr()
    assert "4711" not in said.out + said.err + "".join(str(warning.message) for warning in recwarn)


def test_a_damaged_dicom_is_read_or_has_a_reason_without_its_patient(
    tmp_path: Path, grey: np.ndarray, rng: np.random.Generator
) -> None:
    write_dicom(tmp_path / "a.dcm", grey, WindowCenter=128, WindowWidth=256)
    whole = np.frombuffer((tmp_path / "a.dcm").read_bytes(), np.uint8)
    header = len(whole) - grey.size
    for _ in range(120):
        content = whole.copy()
        content[rng.integers(132, header, rng.integers(1, 6))] = rng.integers(0, 256)
        (tmp_path / "b").write_bytes(content[: rng.integers(header // 2, len(whole) + 1)].tobytes())
        kind_of(tmp_path / "b")
        found = describe(tmp_path / "b")
        assert isinstance(found, Picture) or found.reason
        assert "4711" not in repr(found) and "Roentgen" not in repr(found)


def test_patients_of_dicom_never_cross_the_split_and_are_in_no_record(tmp_path: Path, rng: np.random.Generator) -> None:
    patient_of = {}
    for name in ("benign", "malignant"):
        (tmp_path / name).mkdir()
        for i in range(9):
            pixels = rng.integers(0, 256, (40, 56), dtype=np.uint8)
            ids = {"PatientID": f"ID-4711-{name}-{i // 3}", "StudyInstanceUID": f"1.2.4711.{len(patient_of)}"}
            write_dicom(tmp_path / name / f"{i}.dcm", pixels, **ids)
            patient_of[f"{name}/{i}.dcm"] = ids["PatientID"]
    dataset, report = prepare(settings(val=0.3, test=0.3), ["benign", "malignant"], 64, tmp_path)
    sides: dict[str, set[str]] = {}
    for side in ("train", "val", "test"):
        for image in dataset.split(side):
            sides.setdefault(patient_of[image.file], set()).add(side)
    assert len(sides) == 6 and all(len(of_patient) == 1 for of_patient in sides.values())
    assert report.patients.sentences()[0].startswith("6 patients by DICOM's PatientID and StudyInstanceUID")
    stored = to_json(dataset) + to_json(report.to_dict()) + repr(report.tables()).encode()
    assert b"4711" not in stored and b"Roentgen" not in stored
