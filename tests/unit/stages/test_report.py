"""The report of a run that has grown or was drawn in several sessions."""

import json

from busray.layout import TIMINGS
from busray.records import to_json
from busray.run.record import Run
from busray.stages import report as module
from busray.stages.report import add_to_report
from tests.support.corpora import fill


def test_the_rate_of_drawing_is_from_the_records_however_short_the_last_session_was(run: Run) -> None:
    store = run.store
    fill(store, {"benign": 6, "malignant": 6}, seconds=3.0)  # two shards a class: 12 images in 12 seconds
    fill(store.sub("arms/base"), {"benign": 4}, seconds=8.0)
    store.replace(TIMINGS, to_json({"finetune": 5.0, "generate": 0.1, "generate base": 9.0}))
    rows = {row.pop("stage"): row for row in module._timings(store)}
    assert rows == {
        "finetune": {"seconds": 5.0, "images": None, "images_per_actor_second": None},
        "generate": {"seconds": 0.1, "images": 12, "images_per_actor_second": 1.0},
        "generate base": {"seconds": 9.0, "images": 4, "images_per_actor_second": 0.5},
    }


def test_a_report_made_after_the_corpus_grew_marks_the_audit_of_what_there_was(run: Run) -> None:
    fill(run.store, {"benign": 6, "malignant": 6})
    figure = {
        "metric": "copies",
        "arm": "lora+ti",
        "class": "all",
        "value": 0.0,
        "interval": None,
        "n": 12,
        "n_reference": 8,
        "reference": "train",
        "protocol": "copy-audit",
        "extractor": "aligned-1",
        "frame": "letterbox",
        "size": 128,
    }
    audit = {"sentences": ["Copies: none."], "figures": [figure], "closest": {"columns": [], "rows": []}, "spread": {}}
    report = {"run": {"name": "grown"}, "figures": [], "audit": audit}
    run.store.replace("report.json", to_json(report))
    add_to_report(run, "audit", audit)
    assert "earlier state" not in run.store.read("report.html").decode()
    fill(run.store, {"benign": 9, "malignant": 6})
    add_to_report(run, "study", {})
    assert run.store.read("report.html").decode().count("12 of 15 images") == 2  # above, and in the audit's section
    assert "12 of 15 images" in json.loads(run.store.read("report.json"))["audit"]["outdated"]
