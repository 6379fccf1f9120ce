"""The report: a page that is whole, safe and honest, and the tables and sheets beside it."""

import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from busray.records import Figure
from busray.report.contact_sheet import contact_sheet
from busray.report.page import GalleryRow, report_html
from busray.report.tables import (
    by_extractor,
    class_rows,
    difference_rows,
    markdown_table,
    metrics_rows,
    narrow_rows,
    neighbour_rows,
)
from busray.terminal import print_figures
from tests.support.html import Page

CLASSES = ("benign", "malignant")
MARKUP = '"><script>alert(1)</script>&'


def png(value: int, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size, size), value).save(buffer, "png")
    return buffer.getvalue()


def figure(metric: str, value: float, arm: str, name: str = "all", protocol: str = "synthetic-only") -> dict[str, Any]:
    interval = (value - 0.01, value + 0.01) if metric.startswith("kid") else None
    n, reference = (40, 24) if name == "all" else (20, 12)
    about = ("test", protocol, "inception-v3-2015", name, arm, "letterbox", 128)
    counted = Figure(metric, value, interval, n, reference, *about)
    return counted.to_dict()


def figures(classes: tuple[str, ...] = CLASSES) -> list[dict[str, Any]]:
    names = ("all", *classes)
    floor = [
        figure(f"{m}_floor", v, "real", c, "real-against-real") for c in names for m, v in (("fid", 70), ("kid", 0))
    ]
    arms = [
        figure(metric, value, arm, c)
        for arm, fid, kid in (("base", 150.25, 0.08), ("lora+ti", 90.5, 0.02))
        for c in names
        for metric, value in (("fid", fid), ("kid", kid))
    ]
    mixture = [figure("fid", 30.0, arm, protocol="paper-mixture") for arm in ("base", "lora+ti")]
    return [*floor, *arms, *mixture, figure("kid_difference", -0.06, "lora+ti - base")]


def texture_figures() -> list[dict[str, Any]]:
    """The same arms by another extractor, with distances and neighbourhoods of its own."""
    renamed = {"fid": "fd-texture", "kid": "kd-texture"}
    near = [
        figure(f"{metric}{end}", 0.125, arm)
        for arm, end in (("real", "_floor"), ("base", ""), ("lora+ti", ""))
        for metric in ("precision", "recall", "density", "coverage")
    ]
    return [
        f
        | {
            "metric": renamed.get(f["metric"][:3], f["metric"][:3]) + f["metric"][3:],
            "extractor": "texture-1",
        }
        for f in [*figures(), *near]
    ]


def report(**changes: Any) -> dict[str, Any]:
    return {
        "run": {
            "name": "demo",
            "fingerprint": "0123456789abcdef" * 4,
            "created": "2026-07-14T12:03:11+00:00",
            "busray": "0.1",
            "command": "busray demo",
            "base": {"repository": "tiny", "revision": None, "files": {"unet/weights.safetensors": "ab" * 32}},
            "adapters": {"method": "lora+ti"},
            "execution": {"device": "cpu", "libraries": {"torch": "2.10"}},
            "settings": {"sampling": {"steps": 15}},
        },
        "dataset": {
            "size": 128,
            "frame": "letterbox",
            "counts": {s: dict.fromkeys(CLASSES, 12) for s in ("train", "val", "test")},
            "left_out": [["benign/a.png", "in two classes"]],
        },
        "check": {
            "tables": [{"title": "Unreadable files (1)", "columns": ["file", "reason"], "rows": [["b.png", "cut"]]}]
        },
        "corpus": {
            "planned": 4012,
            "committed": 4009,
            "quarantined": 3,
            "shards": 2,
            "bytes": 2_500_000,
            "classes": {"benign": 2009, "malignant": 2000},
        },
        "figures": figures(),
        "verdicts": ["lora+ti is told apart from base."],
        "finetune": {"steps": 20, "loss": [[10, 0.4], [20, 0.25]], "validation": [[20, 0.3]]},
        "timings": [
            {"stage": "finetune", "seconds": 61.5, "images": None, "images_per_actor_second": None},
            {"stage": "generate", "seconds": 20.0, "images": 40, "images_per_actor_second": 2.25},
        ],
        **changes,
    }


def galleries(refined: bool = True, caption: str = "a prompt") -> dict[str, list[GalleryRow]]:
    return {name: [GalleryRow(png(9), png(99), png(200) if refined else None, caption)] for name in CLASSES}


@pytest.fixture(scope="module")
def html() -> str:
    return report_html(report(), galleries())


def test_tags_balance_and_the_parts_stand_in_their_order(html: str) -> None:
    text = Page(html).text
    parts = (
        "demo",
        "planned",
        "told apart",
        "prompts",
        "Distances",
        "Data set",
        "Fine-tuning",
        "Timings",
        "Provenance",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_no_external_address_and_no_script_is_in_the_page(html: str) -> None:
    page = Page(html)
    assert not re.search(r"https?:|//\w|url\(|@import", re.sub(r"base64,[^\"]*", "", html))
    assert not page.named("script") and not page.named("link") and not page.named("a")
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in page.named("img"))
    assert "default-src 'none'" in html


def test_the_fingerprint_is_shortened_with_the_full_one_in_its_title(html: str) -> None:
    page = Page(html)
    assert {"title": "0123456789abcdef" * 4} in page.named("code")
    assert "0123456789ab" in page.text and "0123456789abcdef" not in page.text


def test_planned_is_shown_as_committed_plus_quarantined(html: str) -> None:
    assert "4,012planned=4,009committed+3quarantined" in Page(html).text


def test_planned_images_that_are_not_there_are_owned_up_to() -> None:
    corpus = {**report()["corpus"], "committed": 4000}
    assert "4,000committed+3quarantined+9not drawn" in Page(report_html(report(corpus=corpus), {})).text


def test_everything_that_comes_from_data_is_escaped() -> None:
    hostile = report(figures=figures((MARKUP,)), verdicts=[MARKUP])
    hostile["run"] = dict.fromkeys(("name", "fingerprint", "created", "busray", "command"), MARKUP)
    hostile["run"] |= {key: {MARKUP: MARKUP} for key in ("base", "adapters", "execution", "settings")}
    hostile["dataset"] = {"size": 1, "frame": MARKUP, "counts": {MARKUP: {MARKUP: 1}}, "left_out": [[MARKUP, MARKUP]]}
    hostile["check"] = {"tables": [{"title": MARKUP, "columns": [MARKUP], "rows": [[MARKUP]]}]}
    hostile["corpus"]["classes"] = {MARKUP: 1}
    hostile["timings"] = [{"stage": MARKUP, "seconds": 1.0, "images": None, "images_per_actor_second": None}]
    for entry in hostile["figures"]:
        entry |= {"arm": f"{entry['arm']}{MARKUP}", "extractor": MARKUP, "reference": MARKUP}
    html = report_html(hostile, {MARKUP: galleries(caption=MARKUP)["benign"]})
    page = Page(html)
    assert "<script" not in html
    assert page.text.count(MARKUP) > 20
    assert page.named("img")[0]["alt"] == f"real, {MARKUP}"


def test_the_gallery_has_three_columns(html: str) -> None:
    assert [attrs["alt"] for attrs in Page(html).named("img")[:3]] == [
        "real, benign",
        "txt2img, benign",
        "refined, benign",
    ]


def test_the_gallery_has_two_columns_where_nothing_was_refined() -> None:
    page = Page(report_html(report(), galleries(refined=False)))
    assert len(page.named("img")) == 4
    assert "refined" not in page.text


def test_a_missing_image_leaves_its_cell_blank() -> None:
    rows = {"benign": [GalleryRow(png(1), png(2), png(3), ""), GalleryRow(None, png(2), png(3), "")]}
    page = Page(report_html(report(), rows))
    assert len(page.named("img")) == 5
    assert [attrs["alt"] for attrs in page.named("img")[3:]] == ["txt2img, benign", "refined, benign"]


def test_every_arm_and_class_has_a_dot_and_kid_has_whiskers(html: str) -> None:
    page = Page(html)
    dots = 2 * 2 * 3
    assert len(page.named("circle")) == dots + 1  # and the validation loss
    assert len([path for path in page.named("path") if path.get("stroke-width")]) == dots // 2 + 1


def test_the_floor_is_drawn(html: str) -> None:
    page = Page(html)
    assert len(page.named("path", "floor")) == 2 * 3
    assert "floor 70.0" in page.text
    without = [f for f in figures() if not f["metric"].endswith("_floor")]
    assert not Page(report_html(report(figures=without), {})).named("path", "floor")


def test_neighbourhoods_are_a_table_where_there_are_any(html: str) -> None:
    assert "Neighbourhoods" not in html
    near = [
        figure(f"{metric}{end}", value, arm)
        for arm, end in (("real", "_floor"), ("base", ""))
        for metric, value in (("precision", 0.5), ("recall", 0.25), ("density", 1.104), ("coverage", 0.75))
    ]
    columns, rows = neighbour_rows(near)
    assert columns == ["class", "arm", "precision", "recall", "density", "coverage"]
    assert rows == [["all", arm, "0.50", "0.25", "1.10", "0.75"] for arm in ("real", "base")]
    assert "coverage" in Page(report_html(report(figures=figures() + near), {})).text


def test_dots_lie_where_their_values_are() -> None:
    page = Page(report_html(report(finetune=None), {}))
    fid = [float(attrs["cx"]) for attrs in page.named("circle")[:2]]
    (floor,) = {re.match(r"M([\d.]+) ", attrs["d"]).group(1) for attrs in page.named("path", "floor")[:3]}  # type: ignore[union-attr]
    zero = next(float(a["x"]) for a in page.named("text", "soft") if a["text-anchor"] == "middle")
    assert (fid[1] - zero) / (fid[0] - zero) == pytest.approx(90.5 / 150.25, abs=2e-3)
    assert (float(floor) - zero) / (fid[0] - zero) == pytest.approx(70 / 150.25, abs=2e-3)


def test_figures_state_extractor_protocol_n_and_reference(html: str) -> None:
    text = Page(html).text
    assert (
        "FID (inception-v3-2015), synthetic-only, n = 40 against 24 test images; each class n = 20 against 12" in text
    )
    assert "FID and KID (inception-v3-2015), real-against-real, n = 40 against 24 test images" in text
    assert "biased upwards at small n" in text and "next to the floor" in text


def test_copies_and_the_study_have_their_verdict_at_the_top_too() -> None:
    found: dict[str, Any] = {"audit": {"sentences": ["Copies: none.", "more"]}}
    found["study"] = {"sentences": ["Primary: no.", "more"]}
    said = Page(report_html(report(verdicts=["Order: a < b."], **found), {})).text
    assert "Order: a < b.Copies: none.Primary: no." in said
    found["audit"]["outdated"] = "That is old."
    said = Page(report_html(report(verdicts=["Order: a < b."], **found), {})).text
    assert "Copies: none. That is old.Primary: no." in said


def test_the_rate_of_drawing_is_an_actors_and_an_older_reports_is_not_shown(html: str) -> None:
    assert "2.25" in Page(html).text and "a second and actor: the images of all shards over" in Page(html).text
    older = [{"stage": "generate", "seconds": 20.0, "images": 40, "images_per_second": 33_000.0}]
    text = Page(report_html(report(timings=older), {})).text
    assert "33,000" not in text and "over the seconds" not in text


def test_parts_without_data_are_left_out() -> None:
    page = Page(report_html({"run": {"name": "bare"}, "finetune": None}, {}))
    assert not any(page.named(tag) for tag in ("section", "h2", "svg", "table", "ul", "img"))
    page = Page(report_html(report(check={"tables": [{"title": "Empty", "columns": ["a"], "rows": []}]}), {}))
    assert "Empty" not in page.text


def test_one_validation_point_or_a_constant_loss_can_be_drawn() -> None:
    for loss, validation in (([[5, 0.3]], []), ([[5, 0.0], [10, 0.0]], [[10, 0.0]])):
        page = Page(report_html(report(finetune={"steps": 10, "loss": loss, "validation": validation}), {}))
        line = page.named("path", "c1")[0]["d"]
        assert "Fine-tuning" in page.text and re.fullmatch(r"M[\d.]+ [\d.]+(L[\d.]+ [\d.]+)*", line)


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_a_row_for_each_arm_and_protocol_with_the_floor_as_its_own() -> None:
    columns, rows = metrics_rows([*figures(), figure("told_apart_auc", 0.875, "base")])
    assert columns == ["arm", "protocol", "n", "FID [spread]", "KID x 1000 [95 % interval]", "AUC [95 % interval]"]
    assert [row[:4] for row in rows] == [
        ["real", "real-against-real", "40", "70.0"],
        ["base", "synthetic-only", "40", "150.2"],
        ["lora+ti", "synthetic-only", "40", "90.5"],
        ["base", "paper-mixture", "40", "30.0"],
        ["lora+ti", "paper-mixture", "40", "30.0"],
    ]
    assert rows[1][4:] == ["80.00 [70.00, 90.00]", "0.875"]
    assert rows[3][4:] == ["–"] * 2


def test_fid_is_printed_with_its_spread() -> None:
    spread = {**figure("fid", 150.25, "base"), "interval": [148.0, 152.5], "replicates": 5}
    assert metrics_rows([spread])[1][0][-1] == "150.2 [148.0, 152.5]"
    assert narrow_rows([spread], "fid")[1] == [["base", "40", "150.2 [148.0, 152.5]"]]


def test_the_clean_subset_has_a_table_of_its_own_and_changes_no_other() -> None:
    clean = [
        {**f, "reference": "test-clean", "value": 9 * f["value"]} for f in figures() if f["protocol"] != "paper-mixture"
    ]
    page = report_html(report(figures=[*figures(), *clean]), {})
    Page(page)
    section = page.split("<h3>Without burned-in annotations</h3>")[1].split("</section>")[0]
    assert "630.0" in section and "n = 40 against 24 test-clean images" in section
    assert page.replace(f"<h3>Without burned-in annotations</h3>{section}", "") == report_html(report(), {})


def test_the_terminal_shows_brackets_and_keeps_extractors_apart(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    about = ("test", "synthetic-only")
    areas = [
        Figure("told_apart_auc", value, (0.0, 1.0), 9, 9, *about, extractor, "all", "base", "letterbox", 64)
        for extractor, value in (("inception-v3-2015", 0.625), ("texture-1", 0.875))
    ]
    fid = Figure("fid", 7.0, (6.0, 8.0), 9, 9, *about, "inception-v3-2015", "all", "base", "letterbox", 64, 5)
    print_figures([fid, *areas], ["said"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "FID [spread] (inception-v3-2015)" in shown and "7.0 [6.0, 8.0]" in shown
    assert "0.625 [0.000, 1.000]" in shown and "0.875 [0.000, 1.000]" in shown


def test_a_row_for_each_class_and_arm() -> None:
    columns, rows = class_rows(figures())
    assert columns == ["class", "arm", "n", "FID [spread]", "KID x 1000 [95 % interval]"]
    assert [row[:3] for row in rows] == [[c, arm, "20"] for c in CLASSES for arm in ("real", "base", "lora+ti")]
    assert rows[1][3:] == ["150.2", "80.00 [70.00, 90.00]"]


def test_no_figures_make_no_rows() -> None:
    assert metrics_rows([]) == (["arm", "protocol", "n"], [])


def test_a_difference_says_whether_its_interval_excludes_zero() -> None:
    found = [figure("kid_difference", value, "lora+ti - base") for value in (-0.06, 0.004, 0.02)]
    found.append({**found[0], "interval": None})
    _, rows = difference_rows([*figures()[:-1], *found])
    assert rows[0] == ["lora+ti - base", "all", "-60.00", "[-70.00, -50.00]", "yes"]
    assert [row[-1] for row in rows] == ["yes", "no", "yes", "–"]
    assert rows[1][2] == "+4.00"


def test_a_number_that_rounds_to_zero_has_no_minus_sign() -> None:
    _, rows = metrics_rows([{**figure("kid", -1e-7, "base"), "interval": None}])
    assert rows[0][-1] == "0.00"


def test_markdown_escapes_pipes_and_puts_numbers_to_the_right() -> None:
    table = markdown_table(["arm", "FID"], [["a|b", "1.5"], ["c\nd", "–"]])
    assert table == "| arm | FID |\n| --- | ---: |\n| a\\|b | 1.5 |\n| c d | – |\n"


def test_each_extractor_has_tables_of_its_own() -> None:
    inception, texture = by_extractor(
        [*texture_figures(), *figures(), {**figures()[0], "metric": "copy_rate"}]
    ).values()
    if inception[0]["extractor"] == "texture-1":
        inception, texture = texture, inception
    assert metrics_rows(inception) == metrics_rows(figures())
    columns, rows = metrics_rows(texture)
    assert columns[3:5] == ["FD-texture [spread]", "KD-texture [95 % interval]"]
    assert not [column for column in columns if "FID" in column or "KID" in column]
    assert rows[1][3:5] == ["150.25", "0.08 [0.07, 0.09]"]
    columns, rows = difference_rows(texture)
    assert columns[2] == "KD-texture difference" and rows == [
        ["lora+ti - base", "all", "-0.06", "[-0.07, -0.05]", "yes"]
    ]
    assert neighbour_rows(inception)[1] == [] and neighbour_rows(texture)[1][0][2:] == ["0.12"] * 4


def test_the_page_keeps_texture_apart_from_fid() -> None:
    page = report_html(report(figures=[*figures(), *texture_figures()]), {})
    Page(page)
    before, after = page.split("<h2>Distances in ultrasound texture</h2>")
    ours, rest = after.split("</section>", 1)
    assert f"{before.removesuffix('<section>')}{rest}" == report_html(report(), {})
    assert "FD-texture and KD-texture (texture-1), real-against-real, n = 40 against 24 test images" in ours
    assert "each class n = 20 against 12 test images, letterbox, 128 px." in ours
    assert ours.count("FID") == ours.count("FID and KID") == 1  # where it says that it is neither


# ---- contact sheets -------------------------------------------------------------------------------------------------


def sheet(*arguments: Any, **options: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(contact_sheet(*arguments, **options))))


def test_a_contact_sheet_shows_each_image_pixel_for_pixel() -> None:
    pixels = sheet([[png(10), png(20)], [png(30), None]], ["", ""])
    assert pixels.shape == (4 + 2 * 12, 4 + 2 * 12)
    assert (pixels[4:12, 4:12] == 10).all() and (pixels[4:12, 16:24] == 20).all() and (pixels[16:24, 4:12] == 30).all()
    assert (pixels[16:24, 16:24] == 255).all()


def test_a_contact_sheet_is_enlarged_by_whole_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "png")
    pixels = sheet([[buffer.getvalue()]], [""], scale=3)
    assert pixels.shape == (12 + 36, 12 + 36)
    assert (pixels[12:36, 12:36] == noise.repeat(3, 0).repeat(3, 1)).all()


def test_labels_stand_above_and_at_the_left_and_never_on_an_image() -> None:
    rows = [[png(0, 64), png(0, 64)]]
    bare, labelled = sheet(rows, ["", ""]), sheet(rows, ["real", "drawn"], row_labels=["benign"])
    top, left = (after - before for after, before in zip(labelled.shape, bare.shape, strict=True))
    assert (labelled[top:, left:] == bare).all()
    assert labelled[:top].min() < 128 and labelled[top:, :left].min() < 128


def test_a_label_wider_than_its_images_widens_the_column() -> None:
    assert sheet([[png(0)]], ["a label far wider than eight pixels"]).shape[1] > 100


def test_the_same_images_give_the_same_sheet() -> None:
    arguments = ([[png(1), None]], ["a", "b"], 2, ["c"])
    assert contact_sheet(*arguments) == contact_sheet(*arguments)
