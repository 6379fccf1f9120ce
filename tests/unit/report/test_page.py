"""The report's page: whole, safe and honest."""

import re
from dataclasses import replace
from typing import Any

import pytest

from busray.evidence.classes import FIRST_DRAW, consistency_figures
from busray.layout import CARD
from busray.records import Figure
from busray.report.classes import consistency_section
from busray.report.page import GalleryRow, report_html
from tests.support.figures import CLASSES, MARKUP, arm_and_floor_figures, neighbour_figures, png, texture_figures
from tests.support.html import Page
from tests.support.judged import NAMES, SEVEN_OF_TEN, real, said


def report(**changes: Any) -> dict[str, Any]:
    return {
        "run": {
            "name": "demo",
            "fingerprint": "0123456789abcdef" * 4,
            "created": "2026-07-14T12:03:11+00:00",
            "busray": "0.1",
            "command": "busray demo",
            "base": {"repository": "tiny", "revision": None, "files": {"unet/weights.safetensors": "ab" * 32}},
            "adapters": {"method": "lora+ti", "folder": "adapters/0123"},
            "execution": {"device": "cpu", "libraries": {"torch": "2.10"}},
            "settings": {"sampling": {"steps": 15}, "adapters": {"method": "lora+ti"}},
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
        "verdicts": ["lora+ti differs from base."],
        "finetune": {"steps": 20, "loss": [[10, 0.4], [20, 0.25]], "validation": [[20, 0.3]]},
        "timings": [
            {"stage": "finetune", "seconds": 61.5, "images": None, "images_per_actor_second": None},
            {"stage": "generate", "seconds": 20.0, "images": 40, "images_per_actor_second": 2.25},
        ],
        **changes,
    }


def render(figures: list[Figure] | None = None, rows: dict[str, list[GalleryRow]] | None = None, **changes: Any) -> str:
    """The page of `report` with changes, and by default with the figures of two arms."""
    shown = arm_and_floor_figures() if figures is None else figures
    return report_html(report(**changes), shown, rows or {})


def galleries(refined: bool = True, caption: str = "a prompt") -> dict[str, list[GalleryRow]]:
    return {name: [GalleryRow(png(9), png(99), png(200) if refined else None, caption)] for name in CLASSES}


@pytest.fixture(scope="module")
def html() -> str:
    return render(rows=galleries())


def test_tags_balance_and_the_parts_stand_in_the_order_of_the_work(html: str) -> None:
    page = Page(html)
    sections = [attrs["id"] for attrs in page.named("section")]
    assert sections == [
        "findings",
        "data-set",
        "fine-tuning",
        "images",
        "distances-to-real-images",
        "timings",
        "provenance",
    ]
    assert page.text.index("demo") < page.text.index("planned") < page.text.index("differs from")


def test_the_list_of_contents_has_a_link_to_each_section_and_links_lead_to_what_is_there(html: str) -> None:
    page = Page(html)
    links = [attrs["href"] for attrs in page.named("a")]
    anchors = {f"#{attrs['id']}" for _, attrs in page.tags if "id" in attrs}
    assert {link for link in links if link.startswith("#")} - {"#-"} == anchors
    assert [link for link in links if not link.startswith("#")] == [
        "./data/",
        "./manifest.parquet",
        f"./{CARD}",
        "./adapters/0123/",
        "./report.json",
    ]


def test_no_external_address_and_no_script_is_in_the_page(html: str) -> None:
    page = Page(html)
    assert not re.search(r"https?:|//\w|url\(|@import", re.sub(r"base64,[^\"]*", "", html))
    assert not page.named("script") and not page.named("link")
    assert all(re.match(r"data:image/(png|webp);base64,", attrs["src"]) for attrs in page.named("img"))
    assert "default-src 'none'" in html


def test_the_fingerprint_is_shortened_with_the_full_one_in_its_title(html: str) -> None:
    page = Page(html)
    assert {"title": "0123456789abcdef" * 4} in page.named("code")
    assert "0123456789ab" in page.text and "0123456789abcdef" not in page.text


def test_planned_is_shown_as_committed_plus_quarantined(html: str) -> None:
    assert "4,012planned=4,009committed+3quarantined" in Page(html).text


def test_planned_images_that_are_missing_are_shown_as_not_generated() -> None:
    corpus = {**report()["corpus"], "committed": 4000}
    assert "4,000committed+3quarantined+9not generated" in Page(render(corpus=corpus)).text


def test_everything_that_comes_from_data_is_escaped() -> None:
    hostile = report(verdicts=[MARKUP])
    hostile["run"] = dict.fromkeys(("name", "fingerprint", "created", "busray", "command"), MARKUP)
    hostile["run"] |= {key: {MARKUP: MARKUP} for key in ("base", "adapters", "execution", "settings")}
    hostile["dataset"] = {"size": 1, "frame": MARKUP, "counts": {MARKUP: {MARKUP: 1}}, "left_out": [[MARKUP, MARKUP]]}
    hostile["check"] = {"tables": [{"title": MARKUP, "columns": [MARKUP], "rows": [[MARKUP]]}]}
    hostile["corpus"]["classes"] = {MARKUP: 1}
    hostile["timings"] = [{"stage": MARKUP, "seconds": 1.0, "images": None, "images_per_actor_second": None}]
    figures = [
        replace(f, arm=f"{f.arm}{MARKUP}", extractor=MARKUP, reference=MARKUP) for f in arm_and_floor_figures((MARKUP,))
    ]
    html = report_html(hostile, figures, {MARKUP: galleries(caption=MARKUP)["benign"]})
    page = Page(html)
    assert "<script" not in html
    assert page.text.count(MARKUP) > 20
    assert page.named("img")[0]["alt"] == f"real, {MARKUP}"


def gallery_images(page: Page) -> list[str]:
    """What the images of the gallery are, without the small ones of the first screen."""
    return [attrs["alt"] for attrs in page.named("img") if attrs["src"].startswith("data:image/png")]


def test_the_gallery_has_three_columns(html: str) -> None:
    assert gallery_images(Page(html))[:3] == ["real, benign", "txt2img, benign", "refined, benign"]


def test_the_gallery_has_two_columns_where_nothing_was_refined() -> None:
    page = Page(render(rows=galleries(refined=False)))
    assert len(gallery_images(page)) == 4
    assert "refined" not in page.text


def test_a_missing_image_leaves_its_cell_blank() -> None:
    rows = {"benign": [GalleryRow(png(1), png(2), png(3), ""), GalleryRow(None, png(2), png(3), "")]}
    shown = gallery_images(Page(render(rows=rows)))
    assert len(shown) == 5
    assert shown[3:] == ["txt2img, benign", "refined, benign"]


def test_the_first_screen_has_small_real_and_released_images_that_lead_to_the_large_ones(html: str) -> None:
    page = Page(html)
    small = [attrs["alt"] for attrs in page.named("img") if attrs["src"].startswith("data:image/webp")]
    assert small == ["real, benign", "refined, benign", "real, malignant", "refined, malignant"]
    assert {"href": "#image-benign-0-2"} in page.named("a")
    assert {"class": "picture", "id": "image-benign-0-2"} in page.named("span")


def test_an_image_enlarges_and_goes_back_without_a_script(html: str) -> None:
    page = Page(html)
    assert len(page.named("a", "open")) == len(page.named("a", "close")) == len(gallery_images(page)) == 6


def test_the_matrices_come_first_where_a_class_is_taken_for_another() -> None:
    right, wrong = said(*[0] * 20), said(*[0] * 20)
    drawn = {"lora+ti": {"benign": right, "malignant": wrong}}
    judged = consistency_figures(drawn, real(*SEVEN_OF_TEN), NAMES, FIRST_DRAW)
    section = consistency_section(judged, None)
    for figures, place in (([*arm_and_floor_figures(), *judged], 0), ([f for f in judged if f.arm == "real"], -3)):
        page = Page(report_html(report(), figures, {}, [section]))
        assert page.named("section")[place]["id"] == "class-consistency"


def test_stages_are_timed_in_the_order_of_the_work() -> None:
    row = {"seconds": 1.0, "images": None, "images_per_actor_second": None}
    names = ["audit", "evaluate", "finetune", "generate", "generate base", "study"]
    text = Page(render(timings=[{"stage": name, **row} for name in names])).text
    places = [text.rindex(f"{name}1.0") for name in ("finetune", "generate", "generate base", "evaluate", "audit")]
    assert places == sorted(places)


def test_every_arm_and_class_has_a_dot_and_kid_has_whiskers(html: str) -> None:
    page = Page(html)
    dots = 2 * 2 * 3
    assert len(page.named("circle")) == dots + 1  # and the validation loss
    assert len([path for path in page.named("path") if path.get("stroke-width")]) == dots // 2 + 1


def test_the_floor_is_drawn(html: str) -> None:
    page = Page(html)
    assert len(page.named("path", "floor")) == 2 * 3
    assert "floor 70.0" in page.text
    without = [f for f in arm_and_floor_figures() if not f.floor]
    assert not Page(render(without)).named("path", "floor")


def test_dots_lie_where_their_values_are() -> None:
    page = Page(render(finetune=None))
    fid = [float(attrs["cx"]) for attrs in page.named("circle")[:2]]
    (floor,) = {re.match(r"M([\d.]+) ", attrs["d"]).group(1) for attrs in page.named("path", "floor")[:3]}  # type: ignore[union-attr]
    zero = next(float(a["x"]) for a in page.named("text", "soft") if a["text-anchor"] == "middle")
    assert (fid[1] - zero) / (fid[0] - zero) == pytest.approx(90.5 / 150.25, abs=2e-3)
    assert (float(floor) - zero) / (fid[0] - zero) == pytest.approx(70 / 150.25, abs=2e-3)


def test_figures_state_extractor_protocol_n_and_reference(html: str) -> None:
    text = Page(html).text
    assert (
        "FID and KID (inception-v3-2015), synthetic-only, n = 40 against 24 test images; each class n = 20 against 12"
        in text
    )
    assert "FID and KID (inception-v3-2015), real-against-real, n = 40 against 24 test images" in text
    assert "biased upwards at small n" in text and "next to the floor" in text


def test_the_first_sentences_of_copies_and_study_stand_at_the_top_too() -> None:
    found: dict[str, Any] = {"audit": {"sentences": ["Copies: none.", "more"]}}
    found["study"] = {"sentences": ["Primary: no.", "more"]}
    shown = Page(render(verdicts=["Order: a < b."], **found)).text
    assert "Order: a < b.Copies: none.Primary: no." in shown
    found["audit"]["outdated"] = "That is old."
    shown = Page(render(verdicts=["Order: a < b."], **found)).text
    assert "Copies: none. That is old.Primary: no." in shown


def test_the_rate_of_generation_is_an_actors_and_explained_where_there_is_one(html: str) -> None:
    text = Page(html).text
    assert "2.25" in text and "Images per second and actor: the images of all shards" in text
    assert "divided by the seconds" not in Page(render(timings=report()["timings"][:1])).text


def test_parts_without_data_are_left_out() -> None:
    page = Page(report_html({"run": {"name": "bare"}, "finetune": None}, [], {}))
    assert not any(page.named(tag) for tag in ("section", "h2", "svg", "table", "ul", "img"))
    page = Page(render(check={"tables": [{"title": "Empty", "columns": ["a"], "rows": []}]}))
    assert "Empty" not in page.text


def test_the_data_set_says_which_copies_were_looked_for() -> None:
    copies = [{"copy": "mirrored", "looked_for": "yes"}, {"copy": "bent", "looked_for": "no"}]
    text = Page(render(check={"copies_looked_for": copies})).text
    assert "Looked for: mirrored. Not looked for: bent." in text
    assert "Looked for" not in Page(render()).text


def test_one_validation_point_or_a_constant_loss_can_be_drawn() -> None:
    for loss, validation in (([[5, 0.3]], []), ([[5, 0.0], [10, 0.0]], [[10, 0.0]])):
        page = Page(render([], finetune={"steps": 10, "loss": loss, "validation": validation}))
        line = page.named("path", "c1")[0]["d"]
        assert "Fine-tuning" in page.text and re.fullmatch(r"M[\d.]+ [\d.]+(L[\d.]+ [\d.]+)*", line)


def test_the_clean_subset_has_a_table_of_its_own_and_changes_no_other() -> None:
    clean = [
        replace(f, reference="test-clean", value=9 * f.value)
        for f in arm_and_floor_figures()
        if f.protocol != "paper-mixture"
    ]
    page = render([*arm_and_floor_figures(), *clean])
    Page(page)
    section = page.split("<h3>Without burned-in annotations</h3>")[1].split("</section>")[0]
    assert "630.0" in section and "n = 40 against 24 test-clean images" in section
    assert page.replace(f"<h3>Without burned-in annotations</h3>{section}", "") == render()


def test_neighbourhoods_are_shown_where_there_are_any(html: str) -> None:
    assert "Neighbourhoods" not in html
    assert "coverage" in Page(render([*arm_and_floor_figures(), *neighbour_figures(0.5)])).text


def test_the_page_keeps_texture_apart_from_fid() -> None:
    page = render([*arm_and_floor_figures(), *texture_figures()])
    Page(page)
    before, after = page.split('<section id="distances-in-ultrasound-texture"><h2>Distances in ultrasound texture</h2>')
    texture, rest = after.split("</section>\n", 1)
    link = '<a href="#distances-in-ultrasound-texture">Distances in ultrasound texture</a>'
    assert f"{before}{rest}".replace(link, "") == render()
    assert "FD-texture and KD-texture (texture-1), real-against-real, n = 40 against 24 test images" in texture
    assert "each class n = 20 against 12 test images, letterbox, 128 px." in texture
    assert texture.count("FID") == texture.count("FID and KID") == 1  # where it says that it is neither


@pytest.mark.parametrize(
    "patients, sentence",
    [
        ({"patients": 7, "crossing": 0}, "The images show 7 known patients. None of them is in more than one split."),
        ({"patients": 7, "crossing": 2}, "2 of 7 patients are in several splits."),
        ({"patients": 0, "crossing": 0}, "Nobody said which images show one patient."),
    ],
)
def test_the_data_set_says_how_many_patients_there_are_and_whether_one_crosses(
    patients: dict[str, int], sentence: str
) -> None:
    assert sentence in Page(render(dataset={"patients": patients})).text


def test_a_report_of_an_older_busray_says_nothing_of_patients() -> None:
    assert "patient" not in Page(render(dataset={"size": 128})).text
