"""The served page of a run, asked over HTTP: what it shows, and what it refuses."""

import http.client
import io
import shutil
import threading
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pytest

from busray.corpus.commit import commit_shard, read_commit
from busray.corpus.encode import Row, png_pixels
from busray.evidence.copies import SEARCH_ROW
from busray.layout import copies_key
from busray.records import ContentBox, DriverProgress, ImageSpec, Redrawn, Shard, to_json
from busray.run import browse
from busray.stages import serve
from busray.stages.serve import Server
from busray.storage import Store
from tests.support.fake_corpus import EXECUTION
from tests.support.html import Page
from tests.support.pinned_run import unpack

SHARD = Shard("benign", 100, 3)
"""Image 100 is given out, of 101 the first draw was rejected, 102 is quarantined."""


class Reply(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def page(self) -> Page:
        return Page(self.body.decode())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The pinned run with one more shard."""
    store = unpack(tmp_path_factory.mktemp("served") / "run")
    box = ContentBox(0, 0, 8, 8)

    def row(index: int, attempt: int, shade: int) -> Row:
        spec = ImageSpec(f"f-benign-{index:08d}", "benign", index, attempt, "a <b>prompt</b>", 1, 2, box)
        return Row(spec, np.full((8, 8), shade, np.uint8), np.full((8, 8), shade + 1, np.uint8))

    commit_shard(
        store,
        SHARD,
        [row(100, 0, 10), row(101, 1, 20)],
        [("f-benign-00000102", "all <black>")],
        {"fingerprint": "f" * 64},
        EXECUTION,
        "parquet",
        1.0,
        (Redrawn("f-benign-00000101", (0.25,), 1),),
        [row(101, 0, 30)],
    )
    return store


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Server]:
    with Server(store) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> Reply:
    """path: below the token, or the whole one where it begins with a slash. It is sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    whole = path if path.startswith("/") else f"{urlsplit(server.url).path}{path}"
    connection.request(method, whole, headers=headers)
    answer = connection.getresponse()
    return Reply(answer.status, answer.read(), dict(answer.getheaders()))


def test_it_listens_on_loopback_only_and_under_a_token_only(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1" and len(server.token) >= 24
    for path in ("/", "/gallery", f"/{server.token[:-1]}/", "/x/"):
        assert ask(server, path).status == 403
    assert ask(server, "", Host="attacker.example").status == 403
    assert ask(server, "").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "config.json",
        "../run.json",
        "%2e%2e/run.json",
        "data/benign",
        "gallery?corpus=../../etc",
        "gallery?stage=prompt",
        "gallery?verdict=x",
        "gallery?from=-1.0",
        "image?class=benign&index=../1",
        "image?class=nothing&index=1",
        "picture.png?class=..%2F..&index=1",
        "grid.png?name=../../config.json",
        "training.png?number=-1",
        "training.png?number=99999",
    ],
)
def test_what_is_no_page_of_the_run_is_not_there(server: Server, path: str) -> None:
    assert ask(server, path).status == 404


def test_it_takes_no_other_method_than_reading(server: Server) -> None:
    assert [ask(server, "", method).status for method in ("POST", "PUT", "DELETE")] == [501] * 3
    head = ask(server, "", "HEAD")
    assert head.status == 200 and head.body == b""


def test_no_script_runs_and_the_address_is_told_to_nobody(server: Server) -> None:
    for path in ("", "gallery", "image?class=benign&index=100"):
        answer = ask(server, path)
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Referrer-Policy"] == "no-referrer" and answer.headers["Cache-Control"] == "no-store"
        assert not answer.page.named("script") and server.token.encode() not in answer.body


def test_the_first_page_says_how_far_the_run_is_and_comes_anew_while_a_driver_works(
    server: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "STATUS_SECONDS", -1)
    page = ask(server, "").page
    assert "No driver works on this run." in page.text and not page.named("meta")[2:]
    assert "released" in page.text and "malignant" in page.text and "base" in page.text
    now = browse_time(store)
    word = DriverProgress("d", "0", "busray run <b>", "host", 1, "", now, now, "generate", 3, 12)
    store.replace("progress/d.json", to_json(word))
    page = ask(server, "").page
    assert "A driver works on this run." in page.text and "generate: 3 of 12" in page.text
    assert {"http-equiv": "refresh", "content": "10"} in page.named("meta") and "busray run <b>" in page.text


def browse_time(store: Store) -> float:
    """Now, by the store's own clock."""
    store.replace("progress/clock", b"")
    return store.modified("progress")["progress/clock"] or 0.0


def test_the_gallery_filters_by_class_and_verdict(server: Server) -> None:
    def tiles(query: str) -> list[str]:
        return [a["href"] for a in ask(server, f"gallery?{query}").page.named("a", "tile")]

    assert len(tiles("")) == len(tiles("class=benign")) + len(tiles("class=malignant"))
    assert any("index=100" in tile for tile in tiles("class=benign"))
    assert not any("index=102" in tile for tile in tiles("class=benign"))
    quarantined = ask(server, "gallery?class=benign&verdict=quarantined").page
    assert "all <black>" in quarantined.text and "benign 102" in quarantined.text
    assert any("index=101" in tile for tile in tiles("verdict=rejected&class=benign"))
    assert not any("index=100" in tile for tile in tiles("verdict=rejected&class=benign"))
    assert "No image is released here." in ask(server, "gallery?class=nothing").page.text


def test_a_picture_is_of_the_stage_and_of_the_draw_that_was_asked_for(server: Server) -> None:
    def shade(query: str) -> int:
        return int(png_pixels(ask(server, f"picture.png?class=benign&{query}").body)[0, 0])

    assert shade("index=100") == 10 and shade("index=100&stage=image_txt2img") == 11
    assert shade("index=101") == 20 and shade("index=101&verdict=rejected") == 30
    assert ask(server, "picture.png?class=benign&index=102").status == 404


def test_pages_of_the_gallery_follow_each_other_without_a_gap(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [a["href"] for a in ask(server, "gallery?class=benign").page.named("a", "tile")]
    monkeypatch.setattr(serve, "ITEMS_A_PAGE", 2)
    found, path = list[str](), "gallery?class=benign"
    while path:
        page = ask(server, path).page
        found += [a["href"] for a in page.named("a", "tile")]
        following = [a["href"] for a in page.named("a") if a.get("id") == "next"]
        path = following[0] if following else ""
    assert found == whole and len(found) > 4


def test_few_records_are_read_for_a_page_however_rare_a_verdict_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "RECORDS_A_PAGE", 1)
    page = browse.Browser(store).items("", "benign", browse.QUARANTINED, (0, 0), 60)
    assert page.following == (1, 0)


def test_an_image_is_shown_with_its_columns_its_gate_and_how_it_was_made(server: Server) -> None:
    text = ask(server, "image?class=benign&index=101").page.text
    assert "f-benign-00000101" in text and "a <b>prompt</b>" in text and "f" * 64 in text
    assert "rejected 1 draws" in text and "0.25" in text and "Attempt 1 was kept" in text
    assert "`busray audit RUN` finds it" in text
    text = ask(server, "image?class=benign&index=102&verdict=quarantined").page.text
    assert "quarantined" in text and "all <black>" in text


def test_the_nearest_training_image_is_that_of_the_stored_audit(server: Server, store: Store) -> None:
    rows = np.zeros(1, SEARCH_ROW)
    rows["index"], rows["nearest"], rows["distance"] = 100, 2, 7.5
    rows["image_score"], rows["image_of"], rows["lesion_of"] = 0.625, 1, -1
    commit = read_commit(store, SHARD)
    key = copies_key("a" * 64, commit.digest)
    buffer = io.BytesIO()
    np.save(buffer, rows)
    store.put_checked(key, buffer.getvalue())
    page = ask(server, "image?class=benign&index=100").page
    assert "score\n0.625" in page.text and "distance\n7.500" in page.text
    assert [image["src"] for image in page.named("img")][-2:] == ["training.png?number=1", "training.png?number=2"]
    assert png_pixels(ask(server, "training.png?number=1").body).ndim == 2


def test_nothing_is_written(server: Server, store: Store) -> None:
    before = sorted(store.list())
    for path in ("", "gallery", "image?class=benign&index=100", "training.png?number=0"):
        assert ask(server, path).status == 200
    assert sorted(store.list()) == before


def test_a_damaged_object_is_named_and_other_pages_go_on(server: Server, store: Store) -> None:
    commit = read_commit(store, Shard("malignant", 0, 4))
    whole = store.read(commit.object)
    store.replace(commit.object, b"cut")
    answer = ask(server, "picture.png?class=malignant&index=0")
    assert answer.status == 500 and commit.object.encode() in answer.body
    store.replace(commit.object, whole)
    assert ask(server, "picture.png?class=malignant&index=0").status == 200


@pytest.mark.slow  # it starts a browser
def test_a_reader_clicks_from_the_progress_to_a_filtered_image_in_chromium(server: Server) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(server.url)
        assert "driver works on this run" in page.inner_text("#state")
        page.click("text=Images")
        every = page.locator(".tile").count()
        page.select_option("select[name=class]", "benign")
        page.click("button")
        assert 0 < page.locator(".tile").count() < every
        page.select_option("select[name=verdict]", "quarantined")
        page.click("button")
        page.click("text=benign 102")
        assert "all <black>" in page.inner_text("#verdict")
        page.go_back()
        page.select_option("select[name=verdict]", "rejected")
        page.select_option("select[name=stage]", "image_txt2img")
        page.click("button")
        page.click("text=benign 101")
        assert page.inner_text("#verdict").startswith("rejected")
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        browser.close()
