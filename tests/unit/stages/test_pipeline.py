"""The whole job in one process with the embedded base: small, real, resumable; and what it refuses
to measure."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from busray.cli import main
from busray.corpus.commit import read_commits, read_rows
from busray.corpus.encode import png_pixels
from busray.layout import commit_key, features_key
from busray.model.adapters import load_adapters
from busray.model.base import TINY, load_pipeline
from busray.model.sample import Sampler
from busray.records import ContentBox, ImageSpec, Shard, UserError
from busray.run.checks import open_run
from busray.run.record import Run
from busray.stages import classifiers
from busray.stages.evaluate import evaluate
from busray.stages.finetune import finetune
from busray.stages.generate import generate
from busray.stages.lesions import geometry
from busray.stages.pipeline import check_finished, run_all
from busray.stages.report import write_report
from busray.storage import Store
from busray.vision.texture import texture_features
from tests.support.corpora import fill
from tests.support.finished import CLASSIFIER_STEPS, adapters, adapters_folder, data_objects, shorter
from tests.support.runs import quiet
from tests.support.workers import InProcessWorkers, commands_in_process

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def short_trainings() -> Iterator[None]:
    """As the finished run was made: a classifier is known by its steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "STEPS", CLASSIFIER_STEPS)
        yield


def test_a_corpus_that_is_not_finished_is_not_measured(run: Run) -> None:
    with pytest.raises(UserError, match=r"benign, malignant: fewer images planned.*run `busray generate` first"):
        check_finished(run)
    fill(run.store, {"benign": 6, "malignant": 6})
    check_finished(run)
    run.store.delete(commit_key(Shard("malignant", 4, 2)))
    with pytest.raises(UserError, match="1 planned shards have no record"):
        check_finished(run)


def test_a_run_leaves_every_planned_image_once_with_its_record(finished: Run) -> None:
    commits = read_commits(finished.store)
    assert sum(c.rows + len(c.rejects) for c in commits) == 12
    tables = [pq.read_table(f"{finished.store.url}/{c.object}") for c in commits]
    ids = [image_id for table in tables for image_id in table.column("image_id").to_pylist()]
    assert len(ids) == len(set(ids)) == 12
    prompts = {prompt for table in tables for prompt in table.column("prompt").to_pylist()}
    assert all("<us-" in prompt for prompt in prompts)
    seeds = [seed for table in tables for seed in table.column("seed_txt2img").to_pylist()]
    assert len(set(seeds)) == 12


def test_training_leaves_a_grid_and_a_validation_loss_at_each_interval(finished: Run) -> None:
    assert list(finished.store.list("finetune/grids")) == ["finetune/grids/00000004.png"]
    assert png_pixels(finished.store.read("finetune/grids/00000004.png")).std() > 10
    record = json.loads(finished.store.read("adapters.json"))
    ((step, loss),) = record["validation"]
    assert step == 4 and 0 < loss < 3


def test_the_report_has_every_arm_with_its_protocol_and_n(finished: Run) -> None:
    report = json.loads(finished.store.read("report.json"))
    figures = [f for f in report["figures"] if f["protocol"] == "synthetic-only" and f["class"] == "all"]
    for arm in ("base", "lora+ti", "lora+ti+refine"):
        assert {f["metric"] for f in figures if f["arm"] == arm} >= {"fid", "kid"}
    assert all(f["n"] == 12 for f in figures if f["metric"] == "fid")
    assert any(f["protocol"] == "paper-mixture" for f in report["figures"])
    for metric in ("fd-texture", "kd-texture", "fd-texture_floor", "kd-texture_difference"):
        assert any(f["metric"] == metric for f in report["figures"] if f["extractor"] == "texture-1")
    assert any("ultrasound texture" in sentence for sentence in report["verdicts"])
    page = finished.store.read("report.html").decode()
    assert "inception-v3-2015" in page and "Distances in ultrasound texture" in page
    assert "data:image/png;base64," in page


def test_all_images_are_measured_beside_the_sample_where_that_is_wanted(finished: Run, tmp_path: Path) -> None:
    """Here the sample is all images, so the two distances of a class are the same number."""
    copy = shutil.copytree(finished.store.url, tmp_path / "run")
    wanted = finished.config.evaluate.model_copy(update={"whole_corpus": True})
    config = finished.config.model_copy(update={"evaluate": wanted})
    run = replace(finished, config=config, store=Store(str(copy)))
    figures = evaluate(run, InProcessWorkers())
    for metric in ("fid", "fd-texture"):
        for name in config.classes:
            of_class = [f for f in figures if (f.metric, f.class_name, f.arm) == (metric, name, "lora+ti+refine")]
            sample, whole = (next(f for f in of_class if f.protocol == p) for p in ("synthetic-only", "whole-corpus"))
            assert whole.n == sample.n == 6 and whole.n_reference == sample.n_reference
            assert whole.value == pytest.approx(sample.value, rel=1e-9)
    write_report(run, figures)
    verdicts = json.loads(run.store.read("report.json"))["verdicts"]
    assert any(line.startswith("FID of all images of lora+ti+refine: ") and "(n = 12)" in line for line in verdicts)
    assert "whole-corpus" in run.store.read("report.html").decode()
    assert not list(run.store.list("moments"))  # so few images fill no block


def test_texture_features_are_stored_a_shard_and_are_of_each_images_content(finished: Run) -> None:
    boxes = []
    for commit in read_commits(finished.store):
        key = features_key(commit.digest, "image", "texture-1")
        stored = np.load(io.BytesIO(finished.store.read(key)), allow_pickle=False)
        rows = read_rows(finished.store, commit).to_pylist()
        own = [ContentBox(*(row[name] for name in ("left", "top", "width", "height"))) for row in rows]
        pixels = np.stack([png_pixels(row["image"]["bytes"]) for row in rows])
        np.testing.assert_allclose(stored, texture_features(pixels, own).astype(np.float32), rtol=1e-6)
        boxes += own
    assert any(box != ContentBox(0, 0, 64, 64) for box in boxes)  # else content and padding are not told apart


def test_lesions_are_measured_in_every_arm_by_one_segmenter_that_is_trained_once(finished: Run) -> None:
    report = json.loads(finished.store.read("report.json"))
    figures = [f for f in report["figures"] if f["metric"].startswith("lesion_")]
    for arm in ("base", "lora+ti", "lora+ti+refine", "real"):
        assert {f["class"] for f in figures if (f["metric"], f["arm"]) == ("lesion_found", arm)} == {
            "benign",
            "malignant",
        }
    dice = next(f for f in figures if (f["metric"], f["class"]) == ("lesion_dice", "all"))
    record = report["geometry"]["segmenter"]
    assert dice["n"] == record["images"]["train"] and dice["n_reference"] == record["images"]["test"]
    held = list(finished.store.list("segmenters"))
    assert len(held) == 2 and record["object"] in held
    assert "Dice" in report["verdicts"][-2] or "Dice" in report["verdicts"][-1]
    page = finished.store.read("report.html").decode()
    assert "Lesion geometry" in page and "outlines of pseudo-masks" in page
    stored = [key for key in finished.store.list("features") if record["digest"][:16] in key]
    again = geometry(finished, InProcessWorkers())  # from what is stored: nothing is made again
    assert [figure.to_dict() for figure in again] == figures
    assert list(finished.store.list("segmenters")) == held
    assert [key for key in finished.store.list("features") if record["digest"][:16] in key] == stored


def test_a_data_set_without_masks_says_so_and_gets_no_geometry(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.store.url, tmp_path / "run")
    images = replace(finished.images, path=tmp_path / "images")
    run = replace(finished, store=Store(str(tmp_path / "run")), images=images)
    shutil.copytree(finished.images.path, images.path)
    bare = {
        split: tuple(replace(image, masks=()) for image in finished.dataset.split(split))
        for split in ("train", "val", "test")
    }
    run = replace(run, images=replace(run.images, dataset=replace(finished.dataset, **bare)))
    figures = geometry(run, InProcessWorkers())
    write_report(run, figures)
    assert figures == []
    report = json.loads(run.store.read("report.json"))
    assert "Lesion geometry is not measured: 0 train images have a mask" in report["verdicts"][-1]
    assert "Not measured: 0 train images" in run.store.read("report.html").decode()


def test_arms_share_their_seeds_and_are_not_the_same_images(finished: Run) -> None:
    def rows(store: Store) -> dict[tuple[str, int], dict[str, Any]]:
        tables = [pq.read_table(f"{store.url}/{c.object}").to_pylist() for c in read_commits(store)]
        return {(row["class"], row["index"]): row for table in tables for row in table}

    released, base = rows(finished.store), rows(finished.store.sub("arms/base"))
    assert released.keys() == base.keys()
    for key, row in released.items():
        assert row["seed_txt2img"] == base[key]["seed_txt2img"]
        assert row["image_txt2img"]["bytes"] != base[key]["image"]["bytes"]
        assert row["image_txt2img"]["bytes"] != row["image"]["bytes"]


def test_a_finished_run_is_verified_with_its_arms_and_leaves_no_orphan(
    finished: Run, capsys: pytest.CaptureFixture
) -> None:
    assert main(["verify", finished.config.output]) == 0
    assert "arms/base" in capsys.readouterr().out
    assert main(["gc", finished.config.output]) == 0
    assert capsys.readouterr().out == ""


def test_running_again_changes_nothing(finished: Run) -> None:
    before = data_objects(finished.store)
    manifest = finished.store.read("manifest.parquet")
    run = open_run(finished.config, quiet)
    run_all(run, InProcessWorkers())
    assert data_objects(finished.store) == before
    assert finished.store.read("manifest.parquet") == manifest


def test_a_changed_setting_is_refused_with_the_differing_field(finished: Run) -> None:
    changed = shorter(finished.config.output, sampling={"steps": 5})
    with pytest.raises(UserError, match=r"sampling\.steps: 2 there, 5 now"):
        open_run(changed, quiet)


def test_one_image_is_made_again_to_the_pixel(finished: Run, capsys: pytest.CaptureFixture) -> None:
    commit = next(c for c in read_commits(finished.store) if c.class_name == "malignant" and c.first == 4)
    image_id = pq.read_table(f"{finished.store.url}/{commit.object}").column("image_id")[1].as_py()
    assert main(["reproduce", finished.config.output, image_id]) == 0
    assert "every pixel matches" in capsys.readouterr().out
    assert main(["reproduce", finished.config.output, "no-such-image"]) == 2


def test_growing_a_corpus_keeps_the_old_shards_and_draws_one_that_lost_its_record_the_same(
    finished: Run, tmp_path: Path
) -> None:
    shutil.copytree(finished.store.url, tmp_path / "run")
    config = shorter(
        tmp_path / "run", classes={name: {"images": 7, "token": f"<us-{name}>"} for name in finished.config.classes}
    )
    run = open_run(config, quiet)
    run.store.delete(next(iter(run.store.list("commits/benign"))))
    before = data_objects(run.store)
    generate(run, InProcessWorkers())
    after = data_objects(run.store)
    assert {key: after[key] for key in before} == before
    commits = read_commits(run.store)
    assert sum(c.rows for c in commits) == 14
    assert {c.object for c in read_commits(finished.store)} <= {c.object for c in commits}, "named by their content"
    with pytest.raises(UserError, match="benign"):
        generate(open_run(shorter(tmp_path / "run"), quiet), InProcessWorkers())


def test_training_that_lost_its_newest_work_comes_to_the_same_adapters(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.store.url, tmp_path / "run")
    store = Store(str(tmp_path / "run"))
    store.delete("adapters.json")
    for key in [*store.list("finetune/checkpoints")]:
        if "/00000004" in key:
            store.delete(key)
    run = open_run(shorter(tmp_path / "run"), quiet)
    assert finetune(run, InProcessWorkers()).sha256 == adapters(finished).sha256


def test_a_prompt_that_cannot_be_drawn_costs_its_images_alone_and_the_exit_status(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other image's prompt has a learned token, whose latents are not finite here."""
    txt2img = Sampler._txt2img

    def poisoned(sampler: Sampler, batch: list[ImageSpec]) -> torch.Tensor:
        latents = txt2img(sampler, batch)
        for latent, spec in zip(latents, batch, strict=True):
            if "<us-" in spec.prompt:
                latent.fill_(torch.nan)
        return latents

    monkeypatch.setattr(Sampler, "_txt2img", poisoned)
    prompts = ["ultrasound image", "{token} ultrasound image"]
    changes = {name: {"images": 2, "token": f"<us-{name}>", "prompts": prompts} for name in finished.config.classes}
    config = shorter(tmp_path / "run", classes=changes, adapters={"path": adapters_folder(finished)})
    (tmp_path / "poisoned.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with commands_in_process():
        assert main(["finetune", str(tmp_path / "poisoned.yaml")]) == 0
        assert main(["generate", str(tmp_path / "poisoned.yaml")]) == 1
    assert "2 of 4 planned images are quarantined" in capsys.readouterr().err
    rejects = [reject for commit in read_commits(Store(config.output)) for reject in commit.rejects]
    assert len(rejects) == 2 and all("not finite" in reason for _, reason in rejects)
    assert main(["verify", config.output]) == 0


PLAIN = """
import sys, numpy, torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
base, adapters, out = sys.argv[1:]
torch.set_num_threads(1)
pipe = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
prompt = "<us-benign> ultrasound image of benign breast tissue"
latents = torch.randn((1, 8, 32, 32), generator=torch.Generator().manual_seed(5))
def draw():
    return pipe(prompt, latents=latents, num_inference_steps=2, guidance_scale=2.0, output_type="np").images[0]
before = draw()
pipe.load_lora_weights(adapters, weight_name="pytorch_lora_weights.safetensors")
pipe.load_textual_inversion(adapters + "/us-benign.safetensors", token="<us-benign>")
numpy.save(out, numpy.stack([before, draw()]))
assert not [name for name in sys.modules if name.split(".")[0] in ("busray", "ray")]
"""


def test_plain_diffusers_draws_the_same_with_the_adapters_in_a_process_without_busray(
    finished: Run, tmp_path: Path
) -> None:
    folder = adapters_folder(finished)
    subprocess.run([sys.executable, "-c", PLAIN, str(TINY), folder, str(tmp_path / "drawn.npy")], check=True)
    before, theirs = np.load(tmp_path / "drawn.npy")
    pipe = load_pipeline(finished.config.base)
    load_adapters(pipe, Path(folder), "lora+ti", finished.config.tokens())
    ours = pipe(
        "<us-benign> ultrasound image of benign breast tissue",
        latents=torch.randn((1, 8, 32, 32), generator=torch.Generator().manual_seed(5)),
        num_inference_steps=2,
        guidance_scale=2.0,
        output_type="np",
    ).images[0]
    np.testing.assert_allclose(ours, theirs, atol=2 / 255)
    assert np.abs(theirs - before).max() > 4 / 255
