"""Commands on a run whose settings have changed where they may: what is there already serves, and is told as it is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from busray.config_file import validate
from busray.corpus.ablation import SubRunPlan
from busray.corpus.commit import commit_shard
from busray.corpus.encode import Row
from busray.corpus.manifest import publish_manifest, published_rows
from busray.corpus.plan import extend_plan, read_segments, shards
from busray.layout import TIMINGS, commit_key
from busray.model.adapters import LORA_FILE, adapter_sha256
from busray.model.checkpoints import commit_adapters
from busray.records import (
    INCEPTION,
    Commit,
    ContentBox,
    Execution,
    ImageSpec,
    Segment,
    Shard,
    Stopped,
    UserError,
    to_json,
)
from busray.run.checks import open_run
from busray.run.record import Run
from busray.stages import generate as generate_stage
from busray.stages import pipeline
from busray.stages import report as report_stage
from busray.stages.ablate import Opened, _draw, _open
from busray.stages.evaluate import _before_and_after
from busray.stages.generate import DrawJob, draw_job, generate
from busray.storage import Store

EXECUTION = Execution("cpu", "float32", 2, 1, {})


def quiet(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A data set, checked once for all tests below; each has a store of its own."""
    tree: dict[str, Any] = {
        "output": str(tmp_path_factory.mktemp("checked") / "run"),
        "dataset": {"phantoms": {"images": 12, "seed": 3}},
        "classes": {name: {"images": 6, "token": f"<us-{name}>"} for name in ("benign", "malignant")},
        "sampling": {"steps": 2, "batch_size": 2},
        "refine": {"steps": 2, "strength": 0.5},
        "evaluate": {"arms": ["base"]},
        "cluster": {"threads": 1},
    }
    return open_run(validate(tree), quiet, needs_inception=False)


@pytest.fixture
def run(checked: Run, tmp_path: Path) -> Run:
    return replace(checked, store=Store(str(tmp_path / "run")))


def changed(run: Run, **changes: dict[str, Any]) -> Run:
    """The run as it is opened with other settings of some groups."""
    tree = run.config.model_dump(mode="json")
    return replace(run, config=validate({**tree, **{key: {**tree[key], **value} for key, value in changes.items()}}))


def commit(store: Store, shard: Shard, seconds: float = 1.0) -> None:
    """Black images, as if they had been drawn."""
    rows = []
    for i in range(shard.first, shard.first + shard.count):
        spec = ImageSpec(f"f-{shard.class_name}-{i:08d}", shard.class_name, i, 0, "", i, i, ContentBox(0, 0, 8, 8))
        rows.append(Row(spec, np.zeros((8, 8), np.uint8)))
    commit_shard(store, shard, rows, (), {"fingerprint": "f" * 64}, EXECUTION, "parquet", seconds)


def fill(store: Store, images: dict[str, int], seconds: float = 1.0) -> None:
    """Plan, commit and publish."""
    segments = extend_plan(store, images, 4)
    for shard in shards(segments):
        commit(store, shard, seconds)
    publish_manifest(store, segments)


def test_a_corpus_that_is_not_finished_is_not_measured(run: Run) -> None:
    with pytest.raises(UserError, match=r"benign, malignant: fewer images planned.*run `busray generate` first"):
        pipeline.check_finished(run)
    fill(run.store, {"benign": 6, "malignant": 6})
    pipeline.check_finished(run)
    run.store.delete(commit_key(Shard("malignant", 4, 2)))
    with pytest.raises(UserError, match="1 planned shards have no record"):
        pipeline.check_finished(run)


def test_a_class_that_was_quarantined_ends_the_figures_with_its_reason(run: Run) -> None:
    arm = run.store.sub("arms/base")
    extend_plan(arm, {"benign": 6, "malignant": 6}, 6)
    commit(arm, Shard("benign", 0, 6))
    rejects = [(f"f-malignant-{i:08d}", "latents or pixels are not finite") for i in range(6)]
    commit_shard(arm, Shard("malignant", 0, 6), [], rejects, {"fingerprint": "f" * 64}, EXECUTION, "parquet", 1.0)
    publish_manifest(arm, read_segments(arm))
    with pytest.raises(Stopped, match=r"0 images of malignant.*quarantined \(latents or pixels are not finite\)"):
        _before_and_after(run, INCEPTION)


def test_adopted_adapters_are_needed_where_they_came_from_no_more(tmp_path: Path) -> None:
    layer = "unet.down_blocks.0.resnets.0.conv1.lora"
    matrices = {f"{layer}.down.weight": np.ones((2, 64, 3, 3)), f"{layer}.up.weight": np.ones((64, 2, 1, 1))}
    (tmp_path / "given").mkdir()
    save_file(matrices, tmp_path / "given" / LORA_FILE)
    tree: dict[str, Any] = {
        "output": str(tmp_path / "run"),
        "dataset": {"phantoms": {"images": 12, "seed": 3}},
        "classes": {"benign": {"images": 6}, "malignant": {"images": 6}},
        "adapters": {"method": "lora", "path": str(tmp_path / "given")},
        "evaluate": {"arms": ["base"]},
    }
    first = open_run(validate(tree), quiet, needs_inception=False)
    shutil.rmtree(tmp_path / "given")
    with pytest.raises(UserError, match=r"adapters\.path: no folder"):
        open_run(validate(tree), quiet, needs_inception=False)
    record = {"method": "lora", "sha256": adapter_sha256({LORA_FILE: save(matrices)})}
    commit_adapters(first.store, {LORA_FILE: save(matrices)}, record)
    open_run(validate(tree), quiet, needs_inception=False)


# ---- fewer images are compared than are there -----------------------------------------------------------------------


def test_an_arm_keeps_its_images_where_fewer_are_compared(run: Run) -> None:
    arm = run.store.sub("arms/base")
    fill(arm, {"benign": 6, "malignant": 6})
    before = arm.read("manifest.parquet")
    generate(changed(run, evaluate={"images": 4}), "base")
    assert arm.read("manifest.parquet") == before


def test_an_arm_keeps_its_images_where_a_class_is_added_with_fewer(run: Run) -> None:
    arm = run.store.sub("arms/base")
    fill(arm, {"benign": 6})
    commit(arm, Shard("malignant", 0, 3))
    fewer = run.config.classes["malignant"].model_copy(update={"images": 3}).model_dump(mode="json")
    generate(changed(run, classes={"malignant": fewer}), "base")
    size = run.config.corpus.shard_size
    assert read_segments(arm) == [Segment("benign", 0, 6, 4), Segment("malignant", 0, 3, size)]
    assert sum(row["rows"] for row in published_rows(arm).values()) == 9


@pytest.mark.parametrize("prefix", ["", "points/steps=3"])
def test_every_part_of_an_ablation_keeps_its_images_where_fewer_are_compared(run: Run, prefix: str) -> None:
    store = run.store.sub(prefix) if prefix else run.store
    fill(store, {"benign": 6, "malignant": 6})
    commit_adapters(store, {}, {"sha256": "a" * 64})
    before = store.read("manifest.parquet")
    fewer = changed(run, evaluate={"arms": ["lora+ti", "lora+ti+refine"]}).config
    classes = {name: c.model_copy(update={"images": 4}) for name, c in fewer.classes.items()}
    part = SubRunPlan(prefix, fewer.model_copy(update={"classes": classes}), {"lora+ti": "lora+ti"})
    one = Opened(part, _open(run, part))
    _draw(one, [one])
    assert store.read("manifest.parquet") == before


# ---- an image of any corpus that is there ---------------------------------------------------------------------------


def test_an_image_of_an_arm_that_the_stored_settings_do_not_name_is_made_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a later --evaluate.arms, or an ablation's base+refine."""
    draw_job(run, "base+refine")
    arm = run.store.sub("arms/base+refine")
    fill(arm, {"malignant": 2})
    asked = []

    def redraw(job: DrawJob, commit: Commit, spec: ImageSpec) -> SimpleNamespace:
        asked.append((job.store.url, job.method, job.refine, commit.shard, spec.index))
        return SimpleNamespace(image=np.full((8, 8), 7, np.uint8))

    monkeypatch.setattr(generate_stage, "redraw", redraw)
    kept, redrawn = generate_stage.reproduce(run, "f-malignant-00000001")
    assert asked == [(arm.url, None, run.config.refine, Shard("malignant", 0, 2), 1)]
    assert kept.max() == 0 and redrawn.min() == 7
    with pytest.raises(UserError, match="no such image"):
        generate_stage.reproduce(run, "f-malignant-00000002")


# ---- the report -----------------------------------------------------------------------------------------------------


def test_the_rate_of_drawing_is_from_the_records_however_short_the_last_session_was(run: Run) -> None:
    store = run.store
    fill(store, {"benign": 6, "malignant": 6}, seconds=3.0)  # two shards a class: 12 images in 12 seconds
    fill(store.sub("arms/base"), {"benign": 4}, seconds=8.0)
    store.replace(TIMINGS, to_json({"finetune": 5.0, "generate": 0.1, "generate base": 9.0}))
    rows = {row.pop("stage"): row for row in report_stage._timings(run)}
    assert rows == {
        "finetune": {"seconds": 5.0, "images": None, "images_per_actor_second": None},
        "generate": {"seconds": 0.1, "images": 12, "images_per_actor_second": 1.0},
        "generate base": {"seconds": 9.0, "images": 4, "images_per_actor_second": 0.5},
    }


def test_a_report_made_after_the_corpus_grew_marks_the_audit_of_what_there_was(run: Run) -> None:
    fill(run.store, {"benign": 6, "malignant": 6})
    figure = {"metric": "copies", "arm": "lora+ti", "value": 0.0, "interval": None, "n": 12, "n_reference": 8}
    audit = {"sentences": ["Copies: none."], "figures": [figure], "closest": {"columns": [], "rows": []}}
    report = {"run": {"name": "grown"}, "figures": [], "audit": audit}
    run.store.replace("report.json", to_json(report))
    report_stage.add_to_report(run, "audit", audit)
    assert "earlier state" not in run.store.read("report.html").decode()
    fill(run.store, {"benign": 9, "malignant": 6})
    report_stage.add_to_report(run, "study", {})
    assert run.store.read("report.html").decode().count("12 of 15 images") == 2  # above, and in the audit's section
    assert "12 of 15 images" in json.loads(run.store.read("report.json"))["audit"]["outdated"]
