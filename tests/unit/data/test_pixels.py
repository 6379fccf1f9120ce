"""Every kind of file becomes 8-bit grey by what its bytes say, or gives the reason why not."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.GifImagePlugin import GifImageFile

from busray.data.images import ImageFolder
from busray.data.pixels import (
    Picture,
    Unreadable,
    describe,
    describe_frames,
    kind_of,
    opened,
    read_grey,
    read_mask,
    read_rgb,
)
from busray.data.read import scan
from busray.records import DataSet, UserError
from tests.support.planted import settings


@pytest.fixture
def grey(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (40, 56), dtype=np.uint8)


def described(path: Path, frame: int = 0) -> Picture:
    found = describe(path, frame)
    assert isinstance(found, Picture), found
    return found


def unreadable(path: Path) -> str:
    found = describe(path)
    assert isinstance(found, Unreadable)
    return found.reason


def write_tiff(path: Path, pixels: np.ndarray, photometric: int = 1) -> None:
    """An uncompressed TIFF of integers, which Pillow writes of few types only."""
    sizes = (pixels.shape[1], pixels.shape[0], 8 * pixels.dtype.itemsize)
    entries = [(256, 4, sizes[0]), (257, 4, sizes[1]), (258, 3, sizes[2]), (259, 3, 1), (262, 3, photometric)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 4, sizes[1]), (279, 4, pixels.nbytes)]
    entries += [(339, 3, 2 if pixels.dtype.kind == "i" else 1)]
    content = struct.pack("<2sHI", b"II", 42, 8 + pixels.nbytes) + pixels.tobytes() + struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        content += struct.pack("<HHII", tag, kind, 1, value)
    path.write_bytes(content + bytes(4))


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
    upright = np.tile(np.linspace(30, 110, 32).astype(np.uint8), (48, 1))
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
    picture = Image.new("RGBA", (4, 4), (200, 200, 200, 128))
    picture.putpixel((0, 0), (200, 200, 200, 255))
    picture.save(tmp_path / "a.png")
    assert np.abs(read_grey(tmp_path / "a.png").astype(int).ravel()[1:] - 100).max() <= 1


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
def test_floating_point_grey_from_0_to_1_or_255_is_read(tmp_path: Path, grey: np.ndarray, top: float) -> None:
    Image.fromarray((grey / 255 * top).astype(np.float32)).save(tmp_path / "a.tif")
    assert np.array_equal(read_grey(tmp_path / "a.tif"), grey)
    found = described(tmp_path / "a.tif")
    assert found.reading == f"0 to {top:g} in floating-point grey"
    assert found.odd == ""


@pytest.mark.parametrize(
    "values, said",
    [
        ([0.0, 1.2], "with values 0 to 1.2 does not say what is black and white"),
        ([0.0, 4095.0], "with values 0 to 4095 does not say"),
        ([-1.0, 1.0], "with values -1 to 1 does not say"),
        ([0.0, float("nan")], "with 1 values that are no numbers"),
    ],
)
def test_floating_point_grey_of_another_range_is_refused_with_the_mend(
    tmp_path: Path, values: list[float], said: str
) -> None:
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "a.tif")
    reason = unreadable(tmp_path / "a.tif")
    assert reason.startswith("floating-point grey")
    assert said in reason and reason.endswith("save it as 8-bit or 16-bit grey")


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("bits", [8, 12])
def test_16_bit_grey_that_holds_fewer_bits_is_read_by_those(
    tmp_path: Path, grey: np.ndarray, name: str, bits: int
) -> None:
    Image.fromarray(grey.astype(np.uint16) * (1 if bits == 8 else 16)).save(tmp_path / name)
    assert np.abs(read_grey(tmp_path / name).astype(int) - grey).max() <= 1
    found = described(tmp_path / name)
    assert found.reading == f"{bits} bits in 16-bit grey"
    assert found.odd == ""


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32])
def test_integers_of_any_size_that_hold_8_bits_are_read_by_those(tmp_path: Path, grey: np.ndarray, dtype: type) -> None:
    write_tiff(tmp_path / "a.tif", grey.astype(dtype))
    assert np.array_equal(read_grey(tmp_path / "a.tif"), grey)
    assert described(tmp_path / "a.tif").reading.startswith("8 bits in ")


@pytest.mark.parametrize("dtype, factor", [(np.int32, 257), (np.int32, 8421504), (np.uint32, 16843009)])
def test_32_bit_grey_is_read_over_16_bits_or_all_of_its_own(
    tmp_path: Path, grey: np.ndarray, dtype: type, factor: int
) -> None:
    write_tiff(tmp_path / "a.tif", (grey.astype(np.int64) * factor).astype(dtype))
    assert np.abs(read_grey(tmp_path / "a.tif").astype(int) - grey).max() <= 1


@pytest.mark.parametrize("values, said", [([0, 10**6], "values up to 1000000"), ([-5, 9], "values -5 to 9")])
def test_32_bit_grey_that_does_not_say_what_is_white_or_black_is_refused(
    tmp_path: Path, values: list[int], said: str
) -> None:
    write_tiff(tmp_path / "a.tif", np.array([values], np.int32))
    reason = unreadable(tmp_path / "a.tif")
    assert said in reason and "save it as" in reason


def test_a_16_bit_tiff_whose_white_is_0_is_turned_over(tmp_path: Path, grey: np.ndarray) -> None:
    write_tiff(tmp_path / "a.tif", (255 - grey).astype(np.uint16) * 257, photometric=0)
    assert np.array_equal(read_grey(tmp_path / "a.tif"), grey)


@pytest.mark.parametrize("alpha", [0, 1, 128])
def test_an_alpha_channel_that_is_the_same_everywhere_is_ignored(tmp_path: Path, grey: np.ndarray, alpha: int) -> None:
    for mode in ("RGBA", "LA"):
        picture = Image.fromarray(grey).convert(mode)
        picture.putalpha(alpha)
        picture.save(tmp_path / "a.png")
        assert np.array_equal(read_grey(tmp_path / "a.png"), grey)
        assert f"alpha channel is {alpha} everywhere" in described(tmp_path / "a.png").reading


def test_signed_8_bit_grey_below_0_is_refused(tmp_path: Path, grey: np.ndarray) -> None:
    write_tiff(tmp_path / "a.tif", (grey.astype(np.int16) - 128).astype(np.int8))
    assert "8-bit signed grey with values -128 to 127 does not say what is black" in unreadable(tmp_path / "a.tif")
    write_tiff(tmp_path / "b.tif", (grey // 2).astype(np.int8))
    assert np.array_equal(read_grey(tmp_path / "b.tif"), grey // 2)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", "git lfs pull"),
        (b"/annex/objects/SHA256E-s1--aa.png\n", "git annex get"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"\n <html>", "a web page"),
        (bytes(600), "all zero"),
        (b"PK\3\4" + bytes(100), "an archive"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (b"%PDF-1.4", "a PDF"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "HEIC"),
        (b"something", "no image that busray reads"),
    ],
)
def test_what_stands_under_an_images_name_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert said in unreadable(tmp_path / "a.png")


def test_a_tiff_of_pixels_that_nobody_reads_says_so(tmp_path: Path, grey: np.ndarray) -> None:
    write_tiff(tmp_path / "a.tif", grey.astype(np.float64) / 255)
    assert "its kind of pixels is none that busray reads" in unreadable(tmp_path / "a.tif")


def test_the_lightness_of_a_lab_picture_is_its_grey(tmp_path: Path, grey: np.ndarray) -> None:
    neutral = Image.fromarray(np.full_like(grey, 128))
    Image.merge("LAB", [Image.fromarray(grey), neutral, neutral]).save(tmp_path / "a.tif")
    assert np.array_equal(read_grey(tmp_path / "a.tif"), grey)
    assert read_rgb(tmp_path / "a.tif") is None


def test_grey_in_cmyk_is_read(tmp_path: Path, grey: np.ndarray) -> None:
    none = Image.fromarray(np.zeros_like(grey))
    Image.merge("CMYK", [none, none, none, Image.fromarray(255 - grey)]).save(tmp_path / "a.tif")
    assert np.array_equal(read_grey(tmp_path / "a.tif"), grey)


@pytest.mark.parametrize(
    "pixels, flat, said",
    [
        (np.zeros((4, 6), np.uint8), True, "black: every pixel is grey level 0; the file has 8-bit grey, 1 value: 0"),
        (np.full((4, 6), 255, np.uint8), True, "white: every pixel is grey level 255"),
        (np.full((4, 6), 70, np.uint8), True, "flat: every pixel is grey level 70"),
        (np.full((4, 6), 70, np.uint16), True, "the file has 16-bit grey, 1 value: 70; read as 8 bits in 16-bit grey"),
        (np.eye(4, dtype=np.uint8) * 200, False, "2 grey levels: 0, 200; the file has 8-bit grey, 2 values: 0 to 200"),
        (np.eye(4) > 0, False, "2 grey levels: 0, 255"),
        (np.arange(20, dtype=np.uint8)[None], False, "almost black: no pixel is above grey level 19"),
        (np.arange(236, 256, dtype=np.uint8)[None], False, "almost white: no pixel is below grey level 236"),
        (np.arange(90, 110, dtype=np.uint8)[None], False, "almost flat: grey levels 90 to 109 only"),
    ],
)
def test_a_picture_that_shows_little_is_named_with_what_was_found(
    tmp_path: Path, pixels: np.ndarray, flat: bool, said: str
) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = described(tmp_path / "a.png")
    assert said in found.odd
    assert found.flat == flat


def test_of_an_ordinary_picture_nothing_is_odd(tmp_path: Path, grey: np.ndarray) -> None:
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        found = described(tmp_path / name)
        assert (found.odd, found.reading, found.flat, found.frames) == ("", "", False, 1)


# ---- kinds and frames ----


@pytest.mark.parametrize(
    "name, format",
    [("a", "PNG"), ("a.png", "JPEG"), ("a.dat", "WEBP"), ("a.jfif", "JPEG"), ("a.jp2", "JPEG2000"), ("a.pgm", "PPM")],
)
def test_a_picture_is_known_by_its_bytes_and_not_by_its_name(
    tmp_path: Path, grey: np.ndarray, name: str, format: str
) -> None:
    Image.fromarray(grey).save(tmp_path / name, format)
    assert kind_of(tmp_path / name) == "picture"
    assert described(tmp_path / name).width == 56


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\1" * 300, b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0\5\x16\7" + bytes(300)]
)
def test_what_is_no_picture_is_of_no_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert kind_of(tmp_path / "a.png") is None
    said = "no image that busray reads, or its beginning is damaged" if content else "empty (0 bytes)"
    assert unreadable(tmp_path / "a.png") == f"it is {said}"


def test_a_damaged_picture_stays_a_picture_and_says_why_it_cannot_be_read(tmp_path: Path, grey: np.ndarray) -> None:
    Image.fromarray(grey).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    for size in (12, len(whole) // 2):
        (tmp_path / "a.png").write_bytes(whole[:size])
        assert kind_of(tmp_path / "a.png") == "picture"
        assert unreadable(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp"])
def test_frames_are_counted_and_read_by_number(tmp_path: Path, name: str) -> None:
    levels = [Image.new("L", (8, 6), level) for level in (40, 120, 200)]
    options: dict[str, Any] = {"lossless": True} if name == "a.webp" else {}
    levels[0].save(tmp_path / name, save_all=True, append_images=levels[1:], **options)
    assert described(tmp_path / name).frames == 3
    seen = [int(read_grey(tmp_path / name, frame)[0, 0]) for frame in range(3)]
    assert np.abs(np.array(seen) - (40, 120, 200)).max() <= 1
    with pytest.raises(UserError, match="no frame 3: it has 3"):
        read_grey(tmp_path / name, 3)


def test_previews_in_a_photograph_are_no_frames(tmp_path: Path) -> None:
    Image.new("L", (8, 6), 40).convert("RGB").save(
        tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (4, 3))]
    )
    assert described(tmp_path / "a.jpg").frames == 1


def test_a_picture_of_absurd_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("busray.data.pixels.MAX_PIXELS", 100)
    Image.new("L", (12, 12)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="12 x 12 pixels are more than 100"):
        read_grey(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.gif", "a.jpg", "a.bmp", "deep.png", "a.webp"])
def test_a_damaged_file_is_read_or_has_a_reason_and_never_raises(
    tmp_path: Path, grey: np.ndarray, rng: np.random.Generator, name: str
) -> None:
    pixels = grey.astype(np.uint16) * 257 if name == "deep.png" else grey
    Image.fromarray(pixels).save(tmp_path / name)
    whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
    for _ in range(25):
        content = whole.copy()
        content[rng.integers(0, len(whole), rng.integers(1, 12))] = rng.integers(0, 256)
        (tmp_path / "b").write_bytes(content[: rng.integers(1, len(whole) + 1)].tobytes())
        kind_of(tmp_path / "b")
        found = describe(tmp_path / "b")
        assert isinstance(found, Picture) or found.reason


def animation(path: Path) -> None:
    """Five pictures that differ in a part, in transparency and in how they are put together."""
    rng = np.random.default_rng(3)
    frames = []
    for number in range(5):
        pixels = np.full((24, 30, 4), (200, 90, 30, 255), np.uint8)
        pixels[4 + number : 12, 5:20, :3] = rng.integers(0, 256, (8 - number, 15, 3))
        pixels[15:20, 3 * number : 3 * number + 6, 3] = 0
        frames.append(Image.fromarray(pixels))
    options: dict[str, Any] = {".gif": {"disposal": [1, 2, 3, 1, 2]}, ".webp": {"lossless": True}}.get(path.suffix, {})
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp"])
def test_frames_of_an_opened_file_are_those_of_a_file_opened_for_each(tmp_path: Path, name: str) -> None:
    animation(tmp_path / name)
    whole = describe_frames(tmp_path / name, range(5))
    assert whole == [described(tmp_path / name, frame) for frame in range(5)]
    for asked in (range(5), (0, 3), (2, 4)):
        with opened(tmp_path / name) as decode:
            for frame in asked:
                decoded, rgb = decode(frame), read_rgb(tmp_path / name, frame)
                assert np.array_equal(decoded.grey, read_grey(tmp_path / name, frame))
                assert (decoded.rgb is None) == (rgb is None)
                assert rgb is None or (decoded.rgb is not None and np.array_equal(decoded.rgb, rgb))


def test_a_turned_frame_is_turned_in_an_opened_file_too(tmp_path: Path) -> None:
    animation(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / "b.png", save_all=True, exif=exif)
    with opened(tmp_path / "b.png") as decode:
        for frame in range(5):
            grey = decode(frame).grey
            assert grey.shape == (30, 24)
            assert np.array_equal(grey, np.rot90(read_grey(tmp_path / "a.png", frame), -1))


def test_an_animation_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    animation(tmp_path / "a.gif")
    composed: list[int] = []
    seek = GifImageFile._seek

    def counted(self: GifImageFile, frame: int, update_image: bool = True) -> None:
        if update_image and frame:
            composed.append(frame)
        seek(self, frame, update_image)

    monkeypatch.setattr(GifImageFile, "_seek", counted)
    assert isinstance(describe_frames(tmp_path / "a.gif", range(5)), list)
    assert composed == [1, 2, 3, 4]


def deep_picture(path: Path, values: np.ndarray, chunk: bytes = b"", **tags: Any) -> None:
    image = Image.fromarray(values.astype(np.uint16))
    if path.suffix == ".tif":
        image.save(path, tiffinfo={int(tag[1:]): value for tag, value in tags.items()})
        return
    image.save(path)
    if chunk:  # before IDAT
        data = path.read_bytes()
        body = b"sBIT" + chunk
        made = struct.pack(">I", len(chunk)) + body + struct.pack(">I", zlib.crc32(body))
        path.write_bytes(data[:33] + made + data[33:])


@pytest.mark.parametrize("bits", [8, 10, 14])
def test_the_bits_that_a_file_states_are_used(tmp_path: Path, grey: np.ndarray, bits: int) -> None:
    values = grey.astype(np.int64) * (2**bits - 1) // 255
    values[0, 0] = 2**bits - 1
    dark = values // 8  # alone it would be taken for fewer bits
    deep_picture(tmp_path / "a.png", values, bytes([bits]))
    deep_picture(tmp_path / "b.tif", values, t281=2**bits - 1)
    deep_picture(tmp_path / "c.png", dark, bytes([bits]))
    for name, factor in (("a.png", 1), ("b.tif", 1), ("c.png", 8)):
        seen = read_grey(tmp_path / name).astype(float) * factor
        assert np.abs(seen - grey)[1:].max() <= 2 * factor
        assert described(tmp_path / name).deep is None


def test_a_statement_that_cannot_be_meant_so_is_not_used(tmp_path: Path, grey: np.ndarray) -> None:
    scaled = grey.astype(np.int64) * 257
    deep_picture(tmp_path / "a.png", scaled, b"\x0a")  # 10 bits, scaled to 16 as PNG wants it
    deep_picture(tmp_path / "b.tif", scaled, t281=int(scaled.max()))
    deep_picture(tmp_path / "c.tif", grey * 10, t281=int((grey * 10).max()))  # the greatest that is there
    assert np.array_equal(read_grey(tmp_path / "a.png"), grey)
    assert np.array_equal(read_grey(tmp_path / "b.tif"), grey)
    found = described(tmp_path / "c.tif").deep
    assert found is not None


def test_16_bit_grey_of_unknown_bits_is_said_and_the_setting_reads_all_files_alike(
    tmp_path: Path, grey: np.ndarray
) -> None:
    (tmp_path / "benign").mkdir()
    values = grey[:, :40].astype(np.int64) * 4
    values[0, 0] = 1020
    deep_picture(tmp_path / "benign" / "a.png", values)
    deep_picture(tmp_path / "benign" / "b.tif", values // 2)
    (note,) = scan(tmp_path, ["benign"]).account.notes
    assert note == (
        "2 images have 16-bit grey of which no file says how many bits it holds; their greatest value is 1020 (10 "
        "bits, benign/a.png). They are read as 12 bits, so none is brighter than 25% of white. If their device has "
        "10 bits, add --dataset.grey_bits=10"
    )
    deep_picture(tmp_path / "benign" / "c.png", values // 16)
    (note,) = scan(tmp_path, ["benign"]).account.notes
    assert "Each is read by its own values: 1 as 8 bits, 2 as 12 bits. If their device has 10 bits" in note

    found = scan(tmp_path, ["benign"], settings=settings(grey_bits=10))
    assert found.account.notes == ()
    a, b, c = (
        ImageFolder(DataSet("", 40, "stretch", 0, found.images, (), (), ()), tmp_path, ("benign",))
        .load(found.images)
        .pixels.astype(float)
    )
    assert np.abs(a - 2 * b).max() <= 2 and np.abs(a - 16 * c).max() <= 16
    assert {image.reading for image in found.images} == {"10 bits in 16-bit grey"}
    ((file, reason),) = scan(tmp_path, ["benign"], settings=settings(grey_bits=9)).unreadable
    assert file == "benign/a.png"
    assert reason == "its values, 0 to 1020, do not fit into the 9 bits of dataset.grey_bits"


def test_12_and_16_bits_that_are_used_whole_need_no_word(tmp_path: Path, grey: np.ndarray) -> None:
    (tmp_path / "benign").mkdir()
    for name, factor in (("a.png", 16), ("b.png", 15)):
        deep_picture(tmp_path / "benign" / name, grey.astype(np.int64) * factor)
    assert scan(tmp_path, ["benign"]).account.notes == ()
