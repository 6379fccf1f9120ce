"""`busray ablate` on a local Ray: every arm measured at equal n, nothing made twice, resumable."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from busray.cli import main
from busray.config import Config
from busray.corpus.ablation import ARMS, parts
from busray.corpus.commit import read_commits, read_rows
from busray.records import UserError
from busray.run.checks import open_run
from busray.stages import ablate as ablation
from busray.stages import evaluate, finetune, generate
from busray.storage import Store
from tests.support.runs import quiet, settings

pytestmark = pytest.mark.slow  # some minutes of drawing and training; `make slow` runs it

SWEEP = {"strengths": [0.75], "guidance_scales": []}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("ablation")
    config = settings(folder / "run", ablate=SWEEP)
    (folder / "mine.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert main(["ablate", str(folder / "mine.yaml")]) == 0
    return config


def indices(store: Store) -> dict[tuple[str, int], tuple[int, int]]:
    rows = [row for commit in read_commits(store) for row in read_rows(store, commit).to_pylist()]
    return {(row["class"], row["index"]): (row["seed_txt2img"], row["seed_img2img"]) for row in rows}


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


def test_arms_differ_in_their_method_only(finished: Config) -> None:
    root = Store(finished.output)
    stores = [root.sub(part.prefix) if part.prefix else root for part in parts(finished)]
    seeds = [indices(store) for store in [*stores, root.sub("arms/base+refine")]]
    assert all(found == seeds[0] for found in seeds) and len(seeds[0]) == 12
    trained = [json.loads(store.read("adapters.json")) for store in stores]
    assert [record["method"] for record in trained] == ["lora+ti", "lora", "ti", "lora+ti", "lora+ti"]
    assert {record["step"] for record in trained} == {6}
    assert trained[0]["sha256"] == trained[3]["sha256"] == trained[4]["sha256"]
    assert len({record["sha256"] for record in trained}) == 3
    assert main(["verify", finished.output]) == 0


def test_an_image_refined_from_another_arms_txt2img_is_the_one_drawn_whole(
    finished: Config, capsys: pytest.CaptureFixture
) -> None:
    point = f"{finished.output}/points/strength=0.75"
    row = read_rows(Store(point), read_commits(Store(point))[0]).to_pylist()[1]
    assert main(["reproduce", point, row["image_id"]]) == 0
    assert "every pixel matches" in capsys.readouterr().out


def test_an_image_of_the_refined_base_is_made_again(finished: Config, capsys: pytest.CaptureFixture) -> None:
    arm = Store(finished.output).sub("arms/base+refine")
    row = read_rows(arm, read_commits(arm)[0]).to_pylist()[1]
    assert main(["reproduce", finished.output, row["image_id"]]) == 0
    assert "every pixel matches" in capsys.readouterr().out


def test_a_second_start_makes_nothing_again_and_a_lost_shard_alone_is_drawn_again(
    finished: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("made again")

    drawn = []
    draw = generate._draw

    def note(run: Any, job: Any, todo: list[Any], *rest: Any) -> None:
        drawn.extend((job.store.url.removeprefix(finished.output), shard.name) for shard in todo)
        draw(run, job, todo, *rest)

    monkeypatch.setattr(finetune, "_train", refuse)
    monkeypatch.setattr(evaluate, "extract", refuse)
    monkeypatch.setattr(ablation, "_reconstruct", refuse)
    monkeypatch.setattr(generate, "_draw", note)
    before = Path(finished.output, "ablate.csv").read_bytes()
    ablation.ablate(open_run(finished, quiet))
    assert drawn == []
    assert Path(finished.output, "ablate.csv").read_bytes() == before
    lost = Store(finished.output).sub("points/strength=0.75")
    lost.delete(next(iter(lost.list("commits/benign"))))
    ablation.ablate(open_run(finished, quiet))
    assert [where for where, _ in drawn] == ["/points/strength=0.75"]
    assert Path(finished.output, "ablate.csv").read_bytes() == before


def test_a_sweep_of_other_values_still_lists_the_earlier_ones(
    finished: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(finished.output, ablate={"strengths": [], "guidance_scales": []})
    report = ablation.ablate(open_run(config, quiet))
    rows = {row["arm"]: row["measured"] for row in report["ablation"]["configurations"]}
    assert rows["lora+ti+refine strength=0.75"] == "earlier" and rows["lora"] == "now"


def test_adapters_from_elsewhere_are_refused(finished: Config, tmp_path: Path) -> None:
    folder = json.loads(Store(finished.output).read("adapters.json"))["folder"]
    config = settings(tmp_path / "run", adapters={"path": f"{finished.output}/{folder}"})
    with pytest.raises(UserError, match=r"adapters\.path"):
        ablation.ablate(open_run(config, quiet))
