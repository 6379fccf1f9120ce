"""A local page of a run: how far it is, its images, and what is known of each. Nothing is written.

It listens on loopback only. Every address begins with a random token, so that no other user of the
machine and no page of the web reads it. It runs no script: a browser loads what changes anew.
"""

import hmac
import re
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

from markupsafe import Markup

from busray.config_file import validate
from busray.corpus.record import flatten
from busray.data.images import ImageFolder
from busray.failures import explain
from busray.layout import AUDIT_PANELS, CARD, CONFIG, DATASET, GEOMETRY_PNG, REPORT_HTML, REPORT_JSON
from busray.model.checkpoints import FOLDER as CHECKPOINTS
from busray.model.checkpoints import CheckpointRecord
from busray.records import Damaged, DataSet, UserError, json_object
from busray.report import html, plots
from busray.report.page import STYLE
from busray.run.browse import FINAL, QUARANTINED, RELEASED, TXT2IMG, VERDICTS, Browser, Item, training_png
from busray.run.images import stored_images
from busray.stages.status import RunStatus, read_status
from busray.storage import Store

ITEMS_A_PAGE = 60
STATUS_SECONDS = 5.0  # a status is not read again before: on an object store it costs listings
REFRESH_SECONDS = 10  # after which a browser loads the progress of a living run anew
FILES = {
    REPORT_HTML: "text/html; charset=utf-8",
    REPORT_JSON: "application/json",
    CARD: "text/plain; charset=utf-8",
    AUDIT_PANELS: "image/png",
    GEOMETRY_PNG: "image/png",
}
"""Files of the run that are given out as they are, by their names; no other one is."""
GRIDS = "finetune/grids"
POLICY = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'"
STAGES = {FINAL: "as given out", TXT2IMG: "before refinement"}


class Answer(NamedTuple):
    body: bytes
    kind: str = "text/html; charset=utf-8"
    status: int = 200


class NotThere(Exception):
    """Nothing is under this address."""


class Served:
    """The answers to what a browser asks of one run."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.browser = Browser(store)
        self._status: RunStatus | None = None
        self._lock = threading.Lock()

    def answer(self, path: str, query: Mapping[str, str]) -> Answer:
        """path: below the token, without its first slash. NotThere for anything else."""
        pages = {"": self._progress, "gallery": self._gallery, "image": self._image}
        pictures = {"picture.png": self._picture, "training.png": self._training, "grid.png": self._grid}
        if path in pages:
            return pages[path](query)
        if path in pictures:
            return pictures[path](query)
        if path in FILES:
            return Answer(_found(self.store.read_or_none(path)), FILES[path])
        raise NotThere

    def _page(self, template: str, **context: Any) -> Answer:
        name = self.store.url.rstrip("/").rpartition("/")[2]
        page = html.ENVIRONMENT.get_template(template)
        return Answer(page.render(style=Markup(STYLE), name=name, **context).encode())

    # ---- progress

    def status(self) -> RunStatus:
        """At most STATUS_SECONDS old. UserError where there is no run."""
        with self._lock:
            if self._status is None or time.time() - self._status.now > STATUS_SECONDS:
                self._status = read_status(self.store, time.time())
                # arms are begun while a run is watched
                self.browser = Browser(self.store)
            return self._status

    def _progress(self, query: Mapping[str, str]) -> Answer:
        status = self.status()
        rows = []
        for corpus in status.corpora:
            for of_class in corpus.classes:
                share = of_class.committed / of_class.planned if of_class.planned else 0.0
                pace = f"{of_class.per_hour:,.0f}" if of_class.per_hour else ""
                left = _hours(of_class.hours_left) if of_class.committed < of_class.planned else ""
                rows.append((corpus.name, of_class, round(100 * share), pace, left))
        lives = any(driver.lives for driver in status.drivers)
        drivers = [driver for driver in status.drivers if driver.lives] or list(status.drivers[:1])
        grids = sorted(key for key in self.store.list(GRIDS) if key.endswith(".png"))
        files = [(name, FILES[name]) for name in (REPORT_HTML, REPORT_JSON, CARD) if self.store.exists(name)]
        return self._page(
            "served_progress.html",
            status=status,
            rows=rows,
            lives=lives,
            drivers=drivers,
            refresh=REFRESH_SECONDS if lives else 0,
            notes=[(_clock(at), text) for at, text in status.notes],
            loss=self._loss(),
            grid=grids[-1].rpartition("/")[2] if grids else "",
            files=[name for name, _ in files],
        )

    def _loss(self) -> Markup:
        """The curve of the training from the newest checkpoint's record, without its weights."""
        records = sorted(key for key in self.store.list(CHECKPOINTS) if key.endswith(".json"))
        if not records:
            return html.NOTHING
        log = self.store.read_record(records[-1], CheckpointRecord.from_json).log
        if not log.loss:
            return html.NOTHING
        series = [plots.Series("training", [plots.Point(*point) for point in log.loss], "c1", dots=False)]
        if log.validation:
            points = [plots.Point(*point) for point in log.validation]
            series.append(plots.Series("validation", points, "c2", line=False))
        drawing = plots.curve_plot(series, "optimiser step", "Loss over optimiser steps", "loss")
        return html.legend([("c1", "training"), ("c2", "validation")]) + drawing

    def _grid(self, query: Mapping[str, str]) -> Answer:
        name = query.get("name", "")
        if not re.fullmatch(r"[0-9]{1,12}\.png", name):
            raise NotThere
        return Answer(_found(self.store.read_or_none(f"{GRIDS}/{name}")), "image/png")

    # ---- gallery

    def _gallery(self, query: Mapping[str, str]) -> Answer:
        corpus, class_name = query.get("corpus", ""), query.get("class", "")
        stage, verdict = query.get("stage", FINAL), query.get("verdict", RELEASED)
        if corpus not in self.browser.corpora or stage not in STAGES or verdict not in VERDICTS:
            raise NotThere
        start = re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,9})", query.get("from", "0.0"))
        if start is None:
            raise NotThere
        page = self.browser.items(corpus, class_name, verdict, (int(start[1]), int(start[2])), ITEMS_A_PAGE)
        chosen = {"corpus": corpus, "class": class_name, "stage": stage, "verdict": verdict}
        shown = [(item, self._address(corpus, item), self._thumbnail(corpus, item, stage)) for item in page.items]
        following = page.following and urlencode({**chosen, "from": f"{page.following[0]}.{page.following[1]}"})
        return self._page(
            "served_gallery.html",
            chosen=chosen,
            corpora=list(self.browser.corpora),
            classes=self._classes(),
            stages=STAGES,
            verdicts=VERDICTS,
            items=shown,
            following=following,
        )

    def _classes(self) -> list[str]:
        return list(self.store.read_record(CONFIG, json_object)["classes"])

    def _address(self, corpus: str, item: Item) -> str:
        where = {"corpus": corpus, "class": item.class_name, "index": item.index, "verdict": item.verdict}
        return f"image?{urlencode(where)}"

    def _thumbnail(self, corpus: str, item: Item, stage: str) -> str:
        if item.verdict == QUARANTINED:
            return ""
        where = {"corpus": corpus, "class": item.class_name, "index": item.index, "verdict": item.verdict}
        return f"picture.png?{urlencode({**where, 'stage': stage})}"

    def _picture(self, query: Mapping[str, str]) -> Answer:
        corpus, class_name, index, verdict = self._asked(query)
        row = self.browser.row(corpus, class_name, index, verdict) or {}
        cell = row.get(query.get("stage", FINAL) if query.get("stage") in STAGES else FINAL)
        # without refinement, the image is its own first stage
        return Answer(_found(cell["bytes"] if cell else (row.get(FINAL) or {}).get("bytes")), "image/png")

    def _asked(self, query: Mapping[str, str]) -> tuple[str, str, int, str]:
        corpus, index, verdict = query.get("corpus", ""), query.get("index", ""), query.get("verdict", RELEASED)
        if corpus not in self.browser.corpora or verdict not in VERDICTS or not re.fullmatch("[0-9]{1,12}", index):
            raise NotThere
        return corpus, query.get("class", ""), int(index), verdict

    # ---- one image

    def _image(self, query: Mapping[str, str]) -> Answer:
        corpus, class_name, index, verdict = self._asked(query)
        commit = self.browser.commit_of(corpus, class_name, index)
        if commit is None:
            raise NotThere
        row = self.browser.row(corpus, class_name, index, verdict) if verdict != QUARANTINED else None
        item = Item(class_name, index, verdict)
        pictures = []
        for stage, words in STAGES.items() if row else ():
            if row and row.get(stage):
                pictures.append((words, self._thumbnail(corpus, item, stage)))
        columns = {name: value for name, value in (row or {}).items() if name not in STAGES}
        redrawn = [record for record in commit.redrawn if record.image_id.endswith(f"-{index:08d}")]
        reasons = [reason for image_id, reason in commit.rejects if image_id.endswith(f"-{index:08d}")]
        nearest = self.browser.nearest(corpus, commit, index) if verdict == RELEASED else []
        shard = {"shard": commit.shard.name, "object": commit.object, "SHA-256": commit.digest}
        made = {**shard, **flatten(asdict(commit.execution)), **flatten(self.browser.provenance(corpus, commit))}
        return self._page(
            "served_image.html",
            item=item,
            image_id=(row or {}).get("image_id", f"{class_name} {index}"),
            pictures=pictures,
            reasons=reasons,
            redrawn=redrawn[0] if redrawn else None,
            columns=html.table((), _rows(columns), "words"),
            nearest=self._named(nearest),
            provenance=html.table((), _rows(made), "words"),
        )

    def _named(self, nearest: list[Any]) -> list[tuple[Any, str]]:
        """With the files of the training images."""
        if not nearest:
            return []
        train = self.store.read_record(DATASET, DataSet.from_json).train
        return [(found, train[found.number].file) for found in nearest if found.number < len(train)]

    def _training(self, query: Mapping[str, str]) -> Answer:
        number = query.get("number", "")
        if not re.fullmatch("[0-9]{1,9}", number):
            raise NotThere
        dataset = self.store.read_record(DATASET, DataSet.from_json)
        stored = self.store.read_record(CONFIG, json_object)
        try:
            config = validate({**stored, "output": self.store.url})
            folder = stored_images(config, self.store)
        except UserError as error:  # such as settings of another machine
            raise NotThere from error
        if folder is None or int(number) >= len(dataset.train):
            raise NotThere
        images = ImageFolder(dataset, folder, tuple(config.classes))
        return Answer(_found(training_png(images, int(number))), "image/png")


def _found(data: bytes | None) -> bytes:
    if data is None:
        raise NotThere
    return data


def _rows(values: Mapping[str, Any]) -> list[list[str]]:
    return [[name, str(value)] for name, value in values.items() if value not in (None, "", [], {})]


def _hours(hours: float | None) -> str:
    return "" if hours is None else f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


# ---- HTTP


class Server(ThreadingHTTPServer):
    """Serves one run on loopback, under a token. port: 0 for a free one."""

    daemon_threads = True

    def __init__(self, store: Store, port: int = 0) -> None:
        self.served = Served(store)
        self.token = secrets.token_urlsafe(18)
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "busray", ""

    def do_GET(self) -> None:
        answer = self._answer()
        self.send_response(answer.status)
        headers = {
            "Content-Type": answer.kind,
            "Content-Length": str(len(answer.body)),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            # the token is in the address
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_GET

    def _answer(self) -> Answer:
        port = self.server.server_port
        # a page of the web may let a name of its own lead to 127.0.0.1
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            return Answer(b"asked under another name\n", "text/plain", 403)
        asked = urlsplit(self.path)
        _, token, *rest = (*asked.path.split("/", 2), "")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            return Answer(b"the address lacks its token: take the one that `busray serve` printed\n", "text/plain", 403)
        query = {name: values[0] for name, values in parse_qs(asked.query).items()}
        try:
            return self.server.served.answer(rest[0], query)
        except (NotThere, FileNotFoundError):
            return Answer(b"nothing is there\n", "text/plain", 404)
        except (Damaged, UserError, OSError, ValueError) as error:
            # a damaged object must not end the page of all others
            return Answer(f"{explain(error).what}\n".encode(), "text/plain; charset=utf-8", 500)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not printed: their addresses have the token."""
