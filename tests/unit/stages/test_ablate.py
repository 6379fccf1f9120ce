"""An ablation: every arm measured at equal n, nothing made twice, resumable."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from busray.cli import main
from busray.config import Config
from busray.corpus.ablation import ARMS, SubRunPlan, plan_sub_runs
from busray.corpus.commit import read_commits, read_rows
from busray.model.checkpoints import commit_adapters
from busray.records import INCEPTION, MOST_REPLICATES, UserError
from busray.run.checks import open_run
from busray.run.record import Run
from busray.stages.ablate import ablate, check_ablation, draw_sub_run, open_sub_run
from busray.storage import Store
from tests.support.corpora import fill, with_settings
from tests.support.runs import quiet, settings
from tests.support.workers import InProcessWorkers, commands_in_process


@pytest.mark.parametrize("prefix", ["", "points/steps=3"])
def test_every_sub_run_keeps_its_images_where_fewer_are_compared(run: Run, prefix: str) -> None:
    store = run.store.sub(prefix) if prefix else run.store
    fill(store, {"benign": 6, "malignant": 6})
    commit_adapters(store, {}, {"sha256": "a" * 64})
    before = store.read("manifest.parquet")
    fewer = with_settings(run, evaluate={"arms": ["lora+ti", "lora+ti+refine"]}).config
    classes = {name: c.model_copy(update={"images": 4}) for name, c in fewer.classes.items()}
    plan = SubRunPlan(prefix, fewer.model_copy(update={"classes": classes}), {"lora+ti": "lora+ti"})
    sub_run = open_sub_run(run, InProcessWorkers(), plan)
    draw_sub_run(sub_run, [sub_run])
    assert store.read("manifest.parquet") == before


def test_sub_runs_draw_what_figures_look_at_and_no_more(run: Run) -> None:
    real = max(sum(image.class_name == name for image in run.dataset.split("all")) for name in run.config.classes)
    classes = {name: c.model_copy(update={"images": 100_000}) for name, c in run.config.classes.items()}
    changes = {"classes": classes, "refine": settings("elsewhere", refine={"steps": 20}).refine}
    large = replace(run, config=run.config.model_copy(update=changes), extractors={INCEPTION: None})
    plans = check_ablation(large)
    assert {plan.config.evaluate.images for plan in plans} == {MOST_REPLICATES * real}
    assert {c.images for plan in plans for c in plan.config.classes.values()} == {MOST_REPLICATES * real}
    asked = run.config.evaluate.model_copy(update={"images": 50_000})
    plans = check_ablation(replace(large, config=large.config.model_copy(update={"evaluate": asked})))
    assert {plan.config.evaluate.images for plan in plans} == {50_000}


def test_a_sub_runs_progress_is_reported_under_its_own_name(run: Run) -> None:
    reported: list[str] = []
    workers = InProcessWorkers(lambda stage, done, total: reported.append(stage))
    for prefix in ("", "points/steps=3"):
        open_sub_run(run, workers, SubRunPlan(prefix, run.config, {})).workers.report("generate", 0, 1)
    assert reported == ["generate", "points/steps=3: generate"]


# ---- a whole ablation: some minutes of drawing and training, so `make slow` runs it ----

SWEEP = {"strengths": [0.75], "guidance_scales": []}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("ablation")
    config = settings(folder / "run", ablate=SWEEP)
    (folder / "mine.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with commands_in_process():
        assert main(["ablate", str(folder / "mine.yaml")]) == 0
    return config


def indices(store: Store) -> dict[tuple[str, int], tuple[int, int]]:
    rows = [row for commit in read_commits(store) for row in read_rows(store, commit).to_pylist()]
    return {(row["class"], row["index"]): (row["seed_txt2img"], row["seed_img2img"]) for row in rows}


@pytest.mark.slow
def test_every_arm_is_measured_at_equal_n(finished: Config) -> None:
    with open(f"{finished.output}/ablate.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    fid = {(r["arm"], r["reference"]): r for r in rows if r["metric"] == "fid" and r["class"] == "all"
           and r["protocol"] == "synthetic-only"}  # fmt: skip
    assert {arm for arm, reference in fid if reference == "test"} == {*ARMS, "lora+ti steps=6"}
    swept = {"lora+ti", "lora+ti+refine", "lora+ti+refine strength=0.75"}
    assert {arm for arm, reference in fid if reference == "val"} == swept
    assert {r["n"] for r in fid.values()} == {"12"}
    through = {
        r["arm"]: r for r in rows if (r["metric"], r["class"], r["protocol"]) == ("fid", "all", "reconstruction")
    }
    assert through.keys() == {"vae", "vae-train"}
    assert float(through["vae"]["value"]) < float(through["vae-train"]["value"])
    near = {r["arm"] for r in rows if r["metric"] == "nearest_train_distance" and r["class"] == "all"}
    assert near == {arm for arm, _ in fid}


@pytest.mark.slow
def test_arms_differ_in_their_method_only(finished: Config) -> None:
    root = Store(finished.output)
    stores = [root.sub(part.prefix) if part.prefix else root for part in plan_sub_runs(finished)]
    seeds = [indices(store) for store in [*stores, root.sub("arms/base+refine")]]
    assert all(found == seeds[0] for found in seeds) and len(seeds[0]) == 12
    trained = [json.loads(store.read("adapters.json")) for store in stores]
    assert [record["method"] for record in trained] == ["lora+ti", "lora", "ti", "lora+ti", "lora+ti"]
    assert {record["step"] for record in trained} == {6}
    assert trained[0]["sha256"] == trained[3]["sha256"] == trained[4]["sha256"]
    assert len({record["sha256"] for record in trained}) == 3
    assert main(["verify", finished.output]) == 0


@pytest.mark.slow
def test_an_image_refined_from_another_arms_txt2img_is_the_one_drawn_whole(
    finished: Config, capsys: pytest.CaptureFixture
) -> None:
    point = f"{finished.output}/points/strength=0.75"
    row = read_rows(Store(point), read_commits(Store(point))[0]).to_pylist()[1]
    assert main(["reproduce", point, row["image_id"]]) == 0
    assert "every pixel matches" in capsys.readouterr().out


@pytest.mark.slow
def test_an_image_of_the_refined_base_is_made_again(finished: Config, capsys: pytest.CaptureFixture) -> None:
    arm = Store(finished.output).sub("arms/base+refine")
    row = read_rows(arm, read_commits(arm)[0]).to_pylist()[1]
    assert main(["reproduce", finished.output, row["image_id"]]) == 0
    assert "every pixel matches" in capsys.readouterr().out


class ResumedWorkers(InProcessWorkers):
    """Workers that may draw shards, whose names are kept in `drawn`, and do nothing else."""

    def __init__(self, drawn: list[str]) -> None:
        super().__init__()
        self.drawn = drawn

    def labelled(self, prefix: str) -> "ResumedWorkers":
        return self

    def draw(self, stage: Any) -> None:
        self.drawn += [stage.drawing.store.url] * len(stage.shards)
        super().draw(stage)

    def call(self, stage: str, *arguments: Any, **options: Any) -> Any:
        raise AssertionError(f"{stage} was done again")

    train = map = call


@pytest.mark.slow
def test_a_second_start_makes_nothing_again_and_a_lost_shard_alone_is_drawn_again(finished: Config) -> None:
    before = Path(finished.output, "ablate.csv").read_bytes()
    drawn: list[str] = []
    ablate(open_run(finished, quiet), ResumedWorkers(drawn))
    assert drawn == []
    assert Path(finished.output, "ablate.csv").read_bytes() == before
    lost = Store(finished.output).sub("points/strength=0.75")
    lost.delete(next(iter(lost.list("commits/benign"))))
    ablate(open_run(finished, quiet), ResumedWorkers(drawn))
    assert [url.removeprefix(finished.output) for url in drawn] == ["/points/strength=0.75"]
    assert Path(finished.output, "ablate.csv").read_bytes() == before


@pytest.mark.slow
def test_a_sweep_of_other_values_still_lists_the_earlier_ones(finished: Config) -> None:
    config = settings(finished.output, ablate={"strengths": [], "guidance_scales": []})
    report = ablate(open_run(config, quiet), InProcessWorkers())
    rows = {row["arm"]: row["measured"] for row in report["ablation"]["configurations"]}
    assert rows["lora+ti+refine strength=0.75"] == "earlier" and rows["lora"] == "now"


@pytest.mark.slow
def test_adapters_from_elsewhere_are_refused(finished: Config, tmp_path: Path) -> None:
    folder = json.loads(Store(finished.output).read("adapters.json"))["folder"]
    config = settings(tmp_path / "run", adapters={"path": f"{finished.output}/{folder}"})
    with pytest.raises(UserError, match=r"adapters\.path"):
        ablate(open_run(config, quiet), InProcessWorkers())
