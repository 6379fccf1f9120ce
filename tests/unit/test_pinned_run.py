"""A run that an earlier busray finished is read as it was stored: names, digests, formats, figures,
pixels.

tests/pinned/make_run.py made it. It is opened where no Ray runs: a Ray that started would leave its
ray.log among the keys, so what is stored is not computed again.
"""

import importlib.util
import json
import shutil
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from busray.cli import main
from busray.config import Config
from busray.config_file import validate
from busray.corpus.arms import corpora
from busray.corpus.commit import read_commits, read_rows
from busray.corpus.draw import LIBRARIES, device_name
from busray.layout import CARD, CONFIG, OLD_CARD, PROGRESS, REPORT_JSON
from busray.records import Commit
from busray.run.checks import open_run
from busray.run.events import FOLDER as EVENTS
from busray.run.record import Run
from busray.stages import classifiers
from busray.stages.finetune import finetune
from busray.stages.generate import draw_job, reproduce
from busray.storage import Store
from tests.support.runs import quiet
from tests.support.workers import InProcessWorkers

PINNED = Path(__file__).parents[1] / "pinned"
EXPECTED: dict[str, Any] = json.loads((PINNED / "expected.json").read_text())
NOT_COMPARED = ("created", "command", "output", "busray")
"""Of a report's `run`: where, when and by which version it was written."""
COMPUTED = ("figures", "verdicts", "timings")
"""Parts of a report that are figures, compared on their own, or words and seconds."""
WRITTEN_ANEW = (REPORT_JSON, "timings.json")
"""By `evaluate`, and not the same."""
RENAMED = ("min_actors", "max_actors")
"""Settings of `cluster` that are read under their old names and written as `actors`."""
SINCE = {
    ("told_apart_auc_floor", "inception-v3-2015"): {"value": 103 / 150, "interval": [0.2929478748, 0.9159567788]},
}
"""(metric, extractor) -> the figure that rounding decided about when the run was made: the penalty
of `separability` depended on the kind of processor, and does no more."""
TOLERANCE = 2.0
"""Grey values, of the mean difference of an image that another kind of processor draws."""


def load_maker() -> Any:
    """tests/pinned/make_run.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("make_run", PINNED / "make_run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = load_maker()


@pytest.fixture(scope="module", autouse=True)
def short_trainings() -> Iterator[None]:
    """As the run was made: a classifier is known by its steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "STEPS", maker.CLASSIFIER_STEPS)
        yield


def unpacked(folder: Path) -> Path:
    with zipfile.ZipFile(maker.ARCHIVE) as packed:
        packed.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as it was stored; commands that write nothing new are run on it."""
    return unpacked(tmp_path_factory.mktemp("pinned") / "run")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run after `busray evaluate` with its own settings."""
    run = unpacked(tmp_path_factory.mktemp("evaluated") / "run")
    settings = {**json.loads((run / CONFIG).read_text()), "output": str(run)}
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(settings))
    assert main(["evaluate", str(file)]) == 0
    return run


def reopened(run: Path) -> Run:
    config = validate({**json.loads((run / CONFIG).read_text()), "output": str(run)})
    return open_run(config, quiet, measures=False, writes=False)


def test_verify_finds_every_image_and_the_same_manifests(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(stored)]) == 0
    printed = capsys.readouterr().out
    assert len(EXPECTED["manifests"]) == 2
    for digest in EXPECTED["manifests"].values():
        assert f"manifest digest {digest}" in printed


def test_stored_features_give_the_same_figures(evaluated: Path) -> None:
    def named(figures: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
        """By all that a figure says of itself but its value."""
        parts = [{k: v for k, v in figure.items() if k not in ("value", "interval")} for figure in figures]
        return {
            tuple(sorted(part.items(), key=lambda item: item[0])): f for part, f in zip(parts, figures, strict=True)
        }

    before, after = named(EXPECTED["figures"]), named(json.loads((evaluated / REPORT_JSON).read_text())["figures"])
    assert len(before) == len(EXPECTED["figures"]) and before.keys() == after.keys()
    for name, stored in before.items():
        again, figure = after[name], {**stored, **SINCE.get((stored["metric"], stored["extractor"]), {})}
        assert again["value"] == pytest.approx(figure["value"], rel=1e-6, abs=1e-9), name
        if figure["interval"] is None:
            assert again["interval"] is None, name
        else:
            assert again["interval"] == pytest.approx(figure["interval"], rel=1e-6, abs=1e-9), name


def test_the_report_is_written_with_all_its_fields_and_their_content(evaluated: Path) -> None:
    report = json.loads((evaluated / REPORT_JSON).read_text())
    renamed = {f"run.settings.cluster.{name}: int" for name in RENAMED}
    assert set(EXPECTED["records"][REPORT_JSON]) - renamed <= maker.fields(report)
    assert len(report["verdicts"]) == len(EXPECTED["verdicts"])
    with zipfile.ZipFile(maker.ARCHIVE) as packed:
        before = json.loads(packed.read(REPORT_JSON))
    assert without_newer_fields(content(report), content(before)) == content(before)


def without_newer_fields(value: Any, before: Any) -> Any:
    """value with those fields alone that it had before; a newer busray may add some."""
    if isinstance(value, dict) and isinstance(before, dict):
        return {name: without_newer_fields(value[name], before[name]) for name in before}
    return value


def content(report: dict[str, Any]) -> dict[str, Any]:
    parts = {name: part for name, part in report.items() if name not in COMPUTED}
    run = {name: part for name, part in report["run"].items() if name not in NOT_COMPARED}
    cluster = {name: value for name, value in run["settings"]["cluster"].items() if name not in RENAMED}
    return {**parts, "run": {**run, "settings": {**run["settings"], "output": "", "cluster": cluster}}}


def test_the_card_has_the_same_header_figures_and_hashes(stored: Path) -> None:
    before = (stored / OLD_CARD).read_text()
    assert main(["card", str(stored)]) == 0
    after = (stored / CARD).read_text()
    (stored / CARD).unlink()
    headers = [yaml.safe_load(card.split("---\n")[1]) for card in (before, after)]
    for header in headers:  # which now names each file and column
        assert header.pop("configs")
    assert headers[1].pop("dataset_info")["splits"][0]["num_examples"] == sum_of_rows(stored)
    assert headers[0] == headers[1]
    assert rows(after) == rows(before) and len(rows(before)) > 100


def sum_of_rows(stored: Path) -> int:
    return sum(commit.rows for commit in read_commits(Store(str(stored))))


def rows(card: str) -> list[str]:
    return [line for line in card.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("arm", ["", "arms/base"])
def test_an_image_is_made_again(stored: Path, arm: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the released corpus one that the class gate had drawn again."""
    store = corpora(Store(str(stored)))[arm]
    drawn = [
        (row["attempt"], row["image_id"], commit) for commit in read_commits(store) for row in images(store, commit)
    ]
    attempt, image_id, commit = max(drawn, key=lambda image: image[:2])
    assert bool(attempt) == (arm == "")
    if as_here(commit):
        assert main(["reproduce", str(stored), image_id]) == 0
        assert "every pixel matches" in capsys.readouterr().out
    else:
        before, redrawn = reproduce(reopened(stored), image_id)
        assert before.shape == redrawn.shape and abs(before.astype(float) - redrawn).mean() < TOLERANCE


def images(store: Store, commit: Commit) -> list[dict[str, Any]]:
    return read_rows(store, commit, columns=["image_id", "attempt"]).to_pylist()


def as_here(commit: Commit) -> bool:
    """Whether this machine draws as the one of the record. A processor's name can stand for several
    kinds."""
    execution, kind = commit.execution, torch.backends.cpu.get_cpu_capability()
    libraries = {name: version(name) for name in LIBRARIES}
    return (execution.device, execution.libraries, EXPECTED["vectors"]) == (device_name("cpu"), libraries, kind)


def test_nothing_is_stored_under_another_name_and_no_record_is_changed(stored: Path, evaluated: Path) -> None:
    packed = [key for key in EXPECTED["keys"] if key not in maker.MADE_AGAIN]
    assert list(Store(str(stored)).list()) == packed
    # An older busray had no progress/, and nothing reads it but `status` and `repair`.
    # Its card had another name, and was no work of `evaluate`.
    # It wrote no event files, which are made again.
    newer = (f"{PROGRESS}/", f"{EVENTS}/", CARD)
    written = [key for key in Store(str(evaluated)).list() if not key.startswith(newer)]
    assert written == EXPECTED["keys"]
    unchanged = {key: digest for key, digest in EXPECTED["digests"].items() if key not in WRITTEN_ANEW}
    assert {key: maker.sha256_file(evaluated / key) for key in unchanged} == unchanged


def test_a_new_run_of_the_same_settings_is_stored_under_the_same_names_with_the_same_identity(
    stored: Path, tmp_path: Path
) -> None:
    """With the old run's images, adapters and class gate: only the kind of machine that made them
    gets the same bits again."""
    old, config = reopened(stored), new_settings(stored, tmp_path / "new")
    (images,) = stored.glob("phantoms-*")
    shutil.copytree(images, tmp_path / "new" / images.name)
    run = open_run(config, quiet, measures=False)
    for key in old.store.list("classifiers"):
        run.store.put_once(key, old.store.read(key))
    workers = InProcessWorkers()
    assert finetune(run, workers).sha256 == finetune(old, workers).sha256
    assert draw_job(run, "cpu").recipe.fingerprint == draw_job(old, "cpu").recipe.fingerprint
    for key in ("dataset.json", "base.json"):
        assert run.store.read(key) == old.store.read(key), key
    for key in ("run.json", "config.json", "check.json"):
        assert set(changed(key)) <= set(maker.record_fields(tmp_path / "new", key)), key


def new_settings(stored: Path, output: Path) -> Config:
    tree = maker.settings().model_dump(mode="json")
    adapters = next(path for path in (stored / "adapters").iterdir() if path.is_dir())
    return validate({**tree, "output": str(output), "adapters": {**tree["adapters"], "path": str(adapters)}})


def changed(key: str) -> list[str]:
    """The pinned fields of a record. The new run adopts adapters, and its run.json has a format."""
    lines = sorted([*EXPECTED["records"][key], *(["format: int"] if key == "run.json" else [])])
    renamed = [f"cluster.{name}: int" for name in RENAMED]
    # `auto` is the default of gpus_per_actor now, where 0.0 was.
    lines = [line.replace("cluster.gpus_per_actor: float", "cluster.gpus_per_actor: str") for line in lines]
    return [line.replace("adapters.path: null", "adapters.path: str") for line in lines if line not in renamed]
