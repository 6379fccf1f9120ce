"""The reader study: no exported byte shows the side; altered sheets are refused."""

import csv
import random
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from busray.cli import main
from busray.corpus.commit import commit_shard
from busray.corpus.encode import Row, png_pixels
from busray.corpus.manifest import publish_manifest
from busray.evidence.reader_study import (
    INSTRUCTIONS,
    SHEET,
    Exhibit,
    blind,
    real_exhibits,
    score,
    synthetic_exhibits,
    write_study,
)
from busray.identity import sha256_file
from busray.layout import segment_key
from busray.records import ContentBox, DataSet, Execution, ImageSpec, Segment, Shard, SourceImage, UserError, to_json
from busray.storage import Store

CLASSES = ("benign", "malignant")


def exhibits(n: int, seed: int = 0) -> list[Exhibit]:
    """n a class and side; the synthetic ones compress far better, as smooth images do."""
    rng = np.random.default_rng(seed)
    made = []
    for side in ("real", "synthetic"):
        for name in CLASSES:
            for i in range(n):
                pixels = rng.integers(0, 256, (32, 32)) if side == "real" else np.full((32, 32), rng.integers(256))
                made.append(Exhibit(pixels.astype(np.uint8), side, name, f"{side}/{name} {i}"))
    return made


def read(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(data.decode().splitlines()))


def chunks(png: bytes) -> list[tuple[bytes, int]]:
    """(type, length) of each chunk of a PNG."""
    found, at = [], 8
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        found.append((kind, length))
        at += 12 + length
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the readers' folder, the key)."""
    folder = tmp_path_factory.mktemp("study") / "readers"
    return folder, write_study(folder, *blind(exhibits(6), seed=1))


def test_every_image_has_the_same_chunks_header_length_and_date(study: tuple[Path, Path]) -> None:
    folder, _ = study
    images = sorted(folder.glob("*.png"))
    assert len(images) == 24
    data = [path.read_bytes() for path in images]
    assert {tuple(chunks(png)) for png in data} == {tuple(chunks(data[0]))}
    assert {kind for kind, _ in chunks(data[0])} == {b"IHDR", b"IDAT", b"IEND"}
    assert len({png[:33] for png in data}) == 1  # signature and header
    assert len({png[41:43] for png in data}) == 1  # zlib's header tells the encoder's setting
    assert len({len(png) for png in data}) == 1
    stats = [path.stat() for path in folder.iterdir()]
    assert len({stat.st_mtime_ns for stat in stats}) == 1
    assert len({stat.st_mode for stat in stats}) == 1


def test_pixels_are_kept_and_the_key_tells_them(study: tuple[Path, Path]) -> None:
    folder, key = study
    by_source = {exhibit.source: exhibit for exhibit in exhibits(6)}
    rows = read(key.read_bytes())
    assert len(rows) == 24
    for row in rows:
        exhibit = by_source.pop(row["source"])
        assert (row["side"], row["class"]) == (exhibit.side, exhibit.class_name)
        assert (png_pixels((folder / row["image"]).read_bytes()) == exhibit.pixels).all()
    assert not by_source


def test_the_key_lies_outside_the_folder_and_nothing_inside_names_a_source(study: tuple[Path, Path]) -> None:
    folder, key = study
    assert key.parent == folder.parent
    assert {path.name for path in folder.iterdir()} == {f"{i:02d}.png" for i in range(1, 25)} | {SHEET, INSTRUCTIONS}
    everything = b"".join(path.read_bytes() for path in folder.iterdir())
    for row in read(key.read_bytes()):
        assert row["source"].encode() not in everything
        assert row["sha256"].encode() not in everything
    sheet = read((folder / SHEET).read_bytes())
    assert [row["image"] for row in sheet] == sorted(row["image"] for row in sheet)
    assert {(row["real_or_synthetic"], row["class"]) for row in sheet} == {("", "")}


def test_names_are_independent_of_side_and_class() -> None:
    """Over many seeds each place in the order is as often real as synthetic, and neighbours are
    no more alike."""
    sides = []
    for seed in range(400):
        key = read(blind(exhibits(2), seed)[1])
        assert [row["image"] for row in key] == [f"{i}.png" for i in range(1, 9)]
        sides.append([row["side"] == "real" for row in key])
    share = np.mean(sides, axis=0)
    assert np.abs(share - 0.5).max() < 4 * 0.5 / 20  # four standard errors
    alike = np.mean([[a == b for a, b in pairwise(row)] for row in sides])
    assert abs(alike - 3 / 7) < 0.05


def test_images_of_different_sizes_are_not_mixed() -> None:
    odd = Exhibit(np.zeros((16, 16), np.uint8), "real", "benign", "odd")
    with pytest.raises(ValueError, match="one size"):
        blind([*exhibits(1), odd], 0)


def test_a_study_never_overwrites_another(study: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = study
    with pytest.raises(UserError, match="exists already"):
        write_study(folder, *blind(exhibits(1), 0))
    (tmp_path / "new-key.csv").write_text("")
    with pytest.raises(UserError, match="exists already"):
        write_study(tmp_path / "new", *blind(exhibits(1), 0))
    assert not (tmp_path / "new").exists()


# ---- where the images come from ----


def corpus(store: Store) -> None:
    """Two shards of 3 benign images and one of 2 malignant, one of which is rejected; pixel (0,
    0) is the index."""
    segments = [Segment("benign", 0, 6, 3), Segment("malignant", 0, 2, 2)]
    for i, segment in enumerate(segments):
        store.put_once(segment_key(i), to_json(segment))
    execution = Execution("cpu", "float32", 1, 1, {})
    for shard in (Shard("benign", 0, 3), Shard("benign", 3, 3), Shard("malignant", 0, 2)):
        rows = []
        for index in range(shard.first, shard.first + shard.count):
            pixels = np.full((8, 8), index, np.uint8)
            spec = ImageSpec(
                f"x-{shard.class_name}-{index:08d}", shard.class_name, index, 0, "p", 1, 2, ContentBox(0, 0, 8, 8)
            )
            rows.append(Row(spec, pixels))
        rejects = [(rows.pop().spec.image_id, "gate")] if shard.class_name == "malignant" else []
        commit_shard(store, shard, rows, rejects, {"fingerprint": "f"}, execution, "parquet", 1.0)
    publish_manifest(store, segments)


def test_synthetic_images_are_drawn_from_all_shards_and_carry_no_marks(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    corpus(store)
    seen = set()
    for seed in range(30):
        drawn = synthetic_exhibits(store, CLASSES, 1, seed)
        assert [exhibit.class_name for exhibit in drawn] == list(CLASSES)
        assert all(exhibit.source.endswith(f"{exhibit.pixels[0, 0]:08d}") for exhibit in drawn)
        seen.add(drawn[0].source)
    assert len(seen) == 6
    files, _ = blind(drawn, 0)
    assert not any(b"SYNTHETIC" in data or b"tEXt" in data for name, data in files.items() if name.endswith(".png"))


def test_more_images_than_there_are_is_refused_by_class(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    corpus(store)
    with pytest.raises(UserError, match="--images=2: class malignant has 1 synthetic images"):
        synthetic_exhibits(store, CLASSES, 2, 0)


def test_real_images_are_test_images_and_of_near_duplicates_one(phantom_folder: Path) -> None:
    def image(i: int, cluster: str | None = None) -> SourceImage:
        file = f"benign/benign ({i}).png"
        return SourceImage(file, "benign", 1, 1, "L", sha256_file(phantom_folder / file), cluster=cluster)

    twins = "benign/benign (4).png"
    dataset = DataSet(
        "h", 32, "letterbox", 0, train=(image(1), image(2)), val=(image(3),),
        test=(image(4, twins), image(5, twins), image(6)), left_out=(),
    )  # fmt: skip
    for seed in range(8):
        drawn = real_exhibits(dataset, phantom_folder, ["benign"], 2, seed)
        sources = {exhibit.source for exhibit in drawn}
        assert len(sources) == 2 and "benign/benign (6).png" in sources
        assert sources <= {i.file for i in dataset.test}
        assert {exhibit.pixels.shape for exhibit in drawn} == {(32, 32)}
    with pytest.raises(UserError, match="--images=3: class benign has 2 test images"):
        real_exhibits(dataset, phantom_folder, ["benign"], 3, 0)


# ---- scoring ----


def filled(study: tuple[Path, Path], path: Path, answer, separator: str = ",") -> Path:
    """A sheet whose cells answer(side, class) -> (scale, class) fills in, lines in another
    order."""
    rows = read(study[1].read_bytes())
    random.Random(0).shuffle(rows)
    lines = [separator.join(("image", "real_or_synthetic", "class"))]
    lines += [separator.join((row["image"], *map(str, answer(row["side"], row["class"])))) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def right(side: str, name: str) -> tuple[int, str]:
    return (5 if side == "synthetic" else 1), name


def test_a_reader_who_sees_everything_scores_1_and_one_who_guesses_a_half(study, tmp_path: Path) -> None:
    sure = score(filled(study, tmp_path / "sure.csv", right), study[1])
    assert sure.auc.value == 1 and sure.auc.interval[1] == 1 and 0.7 < sure.auc.interval[0] < 1
    assert (sure.real, sure.synthetic) == (12, 12)
    assert sure.class_real.estimate.value == sure.class_synthetic.estimate.value == 1
    blank = score(filled(study, tmp_path / "blank.csv", lambda side, name: (3, "benign")), study[1])
    assert blank.auc.value == 0.5
    assert blank.class_real.part == blank.class_synthetic.part == 6
    wrong = score(filled(study, tmp_path / "wrong.csv", lambda side, name: (6 - right(side, name)[0], name)), study[1])
    assert wrong.auc.value == 0


def test_a_sheet_saved_with_semicolons_or_a_byte_order_mark_scores_the_same(study, tmp_path: Path) -> None:
    plain = score(filled(study, tmp_path / "plain.csv", right), study[1])
    assert score(filled(study, tmp_path / "semi.csv", right, ";"), study[1]) == plain
    marked = tmp_path / "marked.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "plain.csv").read_bytes())
    assert score(marked, study[1]) == plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-2], "lines missing: 2"),
        (lambda lines: [*lines, lines[1]], "named more than once: 1"),
        (lambda lines: [*lines, "99.png,3,benign"], r"not images of this study: 1 \(99.png\)"),
        (lambda lines: [lines[0], lines[1].split(",")[0] + ",,benign", *lines[2:]], "real_or_synthetic is not one of"),
        (lambda lines: [lines[0], lines[1].split(",")[0] + ",6,benign", *lines[2:]], "real_or_synthetic is not one of"),
        (lambda lines: [lines[0], lines[1].split(",")[0] + ",3,", *lines[2:]], "class is not one of benign, malignant"),
        (lambda lines: [lines[0], lines[1].split(",")[0] + ",3", *lines[2:]], "line 2 does not have 3 cells"),
        (lambda lines: ["image,score,class", *lines[1:]], "its columns are"),
        (lambda lines: [], "its columns are"),
    ],
)
def test_an_incomplete_or_altered_sheet_is_refused_in_one_message(
    study, tmp_path: Path, change, message: str, capsys: pytest.CaptureFixture
) -> None:
    path = filled(study, tmp_path / "reader.csv", right)
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises(UserError, match=message) as caught:
        score(path, study[1])
    assert "reader.csv" in str(caught.value) and "\n" not in str(caught.value)
    assert main(["readers", "score", str(path), str(study[1])]) == 2
    assert capsys.readouterr().err.count("busray:") == 1


def test_the_command_prints_a_row_a_reader(study, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    sheets = [filled(study, tmp_path / f"{name}.csv", right) for name in ("ada", "bo")]
    assert main(["readers", "score", *map(str, sheets), str(study[1])]) == 0
    out = capsys.readouterr().out
    assert "ada" in out and "bo" in out and "1.000 [" in out and "12 / 12" in out


def test_a_run_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["readers", "export", str(tmp_path / "none"), str(tmp_path / "folder")]) == 2
    assert "no corpus there" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()
