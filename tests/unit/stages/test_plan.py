"""`busray plan`: what a job takes, before it is started."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from busray.cli import main
from busray.config import Config
from busray.corpus.cost import Rate
from busray.layout import CONFIG
from busray.records import UserError, to_json
from busray.stages import probe
from busray.stages.plan import Rates, gpu_budget, job_plan, rates_of, recorded_rates, refuse_above
from busray.storage import Store
from busray.terminal import short_plan
from tests.support.corpora import fill
from tests.support.runs import quiet, settings

FAST = Rate(2.0, "made up", 500.0)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Two classes of 6 images, in shards of 4 + 2; arms base, lora+ti, lora+ti+refine."""
    return settings(tmp_path / "run")


def begun(config: Config, **changes: Any) -> Store:
    """A run of the config that has 12 images of a second each, in 4 shards."""
    store = Store(config.output)
    stored = config.model_copy(update=changes)
    store.put_checked(CONFIG, to_json(stored.model_dump(mode="json")))
    fill(store, {"benign": 6, "malignant": 6}, seconds=3.0)
    return store


def test_a_new_run_draws_its_corpus_and_the_arm_base(config: Config) -> None:
    plan = job_plan(config, Rates({True: FAST}, {}))
    corpus, base = plan.drawing
    assert (corpus.name, sorted(corpus.units), corpus.done, corpus.rate) == ("corpus", [2, 2, 4, 4], 0, FAST)
    assert (base.name, sorted(base.units), base.rate) == ("arm base", [2, 2, 4, 4], None)


def test_features_are_of_each_arm_and_of_the_real_images(config: Config) -> None:
    """3 arms x 2 classes x (4 + 2) images, and 2 x 12 real ones."""
    inception, texture = job_plan(config, Rates({}, {"inception": FAST})).features
    assert sorted(inception.units) == [2] * 6 + [4] * 6 + [12] * 2
    assert (inception.gpus, inception.bytes_an_image) == (0, 8192)
    assert (texture.name, texture.rate, texture.bytes_an_image) == ("features texture", None, 236)


def test_the_arms_of_a_large_corpus_are_as_large_as_figures_look_at(config: Config) -> None:
    """Ten images for each of the 12 real ones; the released corpus is not measured whole."""
    large = {name: c.model_copy(update={"images": 100_000}) for name, c in config.classes.items()}
    config = config.model_copy(update={"classes": large})
    plan = job_plan(config, Rates({}, {}))
    assert [work.images for work in plan.drawing] == [200_000, 240]
    assert plan.features[0].images == 3 * 240 + 24
    whole = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"whole_corpus": True})})
    assert job_plan(whole, Rates({}, {})).features[0].images == 2 * 240 + 24 + 200_000


def test_what_is_drawn_already_is_not_counted_again(config: Config) -> None:
    begun(config)
    corpus, base = job_plan(config, Rates({}, {})).drawing
    assert (corpus.images, corpus.done, corpus.requests) == (0, 12, 0)
    assert base.images == 12


def test_a_corpus_that_grows_is_charged_for_what_is_new(config: Config) -> None:
    begun(config)
    more = {name: c.model_copy(update={"images": 11}) for name, c in config.classes.items()}
    corpus, _ = job_plan(config.model_copy(update={"classes": more}), Rates({}, {})).drawing
    assert (sorted(corpus.units), corpus.done) == ([1, 1, 4, 4], 12)


def test_shards_that_are_sized_by_an_unknown_speed_are_not_counted(config: Config) -> None:
    """100,000 images by corpus.shard_seconds=75: at 2 s an image 37 images, in batches of 4: 36."""
    large = {name: c.model_copy(update={"images": 50_000}) for name, c in config.classes.items()}
    corpus = config.corpus.model_copy(update={"shard_size": None})
    config = config.model_copy(update={"classes": large, "corpus": corpus})
    unknown = job_plan(config, Rates({}, {}))
    assert [(one.images, one.units) for one in unknown.estimates()[:1]] == [(100_000, None)]
    known = job_plan(config, Rates({True: FAST}, {})).drawing[0]
    assert known.is_cut and max(known.units) == 36


def test_pngs_cost_a_request_each(config: Config) -> None:
    plain, _ = job_plan(config, Rates({}, {})).drawing
    png = config.model_copy(update={"corpus": config.corpus.model_copy(update={"format": "png"})})
    assert job_plan(png, Rates({}, {})).drawing[0].requests == plain.requests + 2 * 12


# ---- rates


def test_records_of_the_run_give_the_rate_of_its_kind_of_images(config: Config) -> None:
    """4 shards of 3 s: a second an image."""
    rates = recorded_rates(config, begun(config))
    assert rates.drawing[True].seconds == 1.0
    assert "4 of 4 records" in rates.drawing[True].source and "drawn on cpu" in rates.drawing[True].source
    assert False not in rates.drawing and rates.extractors == {}
    fill(Store(config.output).sub("arms/base"), {"benign": 4}, seconds=2.0)
    assert recorded_rates(config, Store(config.output)).drawing[False].seconds == 0.5


def test_records_of_other_settings_give_no_rate(config: Config, tmp_path: Path) -> None:
    store = begun(config, sampling=config.sampling.model_copy(update={"steps": 50}))
    rates = recorded_rates(config, store)
    assert rates.drawing == {} and "sampling.steps: 50 there, 4 now" in rates.notes[0]
    with pytest.raises(UserError, match=r"--rates: .*sampling.steps: 50 there, 4 now"):
        recorded_rates(config, store, asked=True)


def test_a_named_run_without_records_is_the_users_mistake(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run there"):
        recorded_rates(config, Store(str(tmp_path / "none")), asked=True)
    Store(config.output).put_checked(CONFIG, to_json(config.model_dump(mode="json")))
    with pytest.raises(UserError, match="no records of shards yet"):
        recorded_rates(config, Store(config.output), asked=True)
    assert recorded_rates(config, Store(config.output)).drawing == {}


@pytest.mark.slow
def test_a_probe_draws_one_batch_of_each_kind_with_the_embedded_base(config: Config) -> None:
    config = config.model_copy(update={"sampling": config.sampling.model_copy(update={"steps": 2, "batch_size": 2})})
    rates, images = probe.probe_drawing(config, "cpu", quiet)
    assert set(rates) == {False, True}
    assert images.shape == (2, 128, 128) and images.std() > 0
    for rate in rates.values():
        assert 0 < rate.seconds < 60 and rate.bytes is not None and 1000 < rate.bytes < 100_000
        assert rate.source.startswith("a probe of 2 images on cpu: ")
    plain = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"extractors": ("texture",)})})
    measured = probe.probe_extractors(plain, images, "cpu", quiet)
    assert measured["texture"].seconds > 0 and measured["texture"].bytes == 4 * 59


def test_a_probe_for_gpus_is_refused_where_there_is_none(config: Config) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    on_gpus = config.model_copy(update={"cluster": config.cluster.model_copy(update={"gpus_per_actor": 1.0})})
    with pytest.raises(UserError, match="this machine has no GPU"):
        rates_of(on_gpus, None, quiet, probe=True)


# ---- the limit


def limited(config: Config, hours: float, gpus: float = 1.0) -> Config:
    cluster = config.cluster.model_copy(update={"gpus_per_actor": gpus, "max_gpu_hours": hours})
    return config.model_copy(update={"cluster": cluster})


def test_a_job_above_the_limit_is_refused_where_its_rates_are_known(config: Config) -> None:
    """12 + 12 images of 300 s each: two GPU-hours."""
    slow = Rates(dict.fromkeys((False, True), Rate(300.0, "made up")), {})
    refuse_above(limited(config, 2.0), job_plan(limited(config, 2.0), slow))
    with pytest.raises(UserError, match=r"cluster.max_gpu_hours: .* takes 2.0 GPU-hours, and 1.9 are allowed"):
        refuse_above(limited(config, 1.9), job_plan(limited(config, 1.9), slow))
    refuse_above(limited(config, 0.1, gpus=0.0), job_plan(limited(config, 0.1, gpus=0.0), slow))


def test_nothing_is_refused_where_a_rate_is_not_known(config: Config) -> None:
    refuse_above(limited(config, 0.001), job_plan(limited(config, 0.001), Rates({}, {})))


def test_the_budget_counts_arms_that_take_as_long_an_image(config: Config) -> None:
    """The released corpus is refined (12 images), the arm base is not (12)."""
    assert gpu_budget(config, Store(config.output), None) is None
    assert gpu_budget(limited(config, 1.0, gpus=0.0), Store(config.output), None) is None
    budget = gpu_budget(limited(config, 1.0), Store(config.output), None)
    assert budget is not None and (budget.images, budget.hours, budget.gpus) == (12, 0.0, 1.0)


def test_the_budget_of_an_arm_counts_what_the_corpus_took(config: Config) -> None:
    """12 images of a second each: 12 GPU-seconds."""
    with_limit = limited(config, 1.0)
    begun(with_limit)
    budget = gpu_budget(with_limit, Store(config.output), "base")
    assert budget is not None and budget.images == 12
    assert budget.hours == pytest.approx(12 / 3600)


# ---- in short, before `busray run`


def test_the_short_form_says_what_is_left_and_by_which_rate(config: Config) -> None:
    short = short_plan(job_plan(config, Rates({}, {})))
    assert "corpus 12 images (4 shards), arm base 12 images (4 shards), on 1 actors" in short
    assert "known after the first shards" in short
    short = short_plan(job_plan(limited(config, 9.0), Rates({True: Rate(300.0, "3 records")}, {})))
    assert "at least 60.0 min, 1.0 GPU-hours, by 3 records" in short
    begun(config)
    fill(Store(config.output).sub("arms/base"), {"benign": 6, "malignant": 6})
    assert short_plan(job_plan(config, Rates({}, {}))) == "plan: every image is drawn"


# ---- the command


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    classes = {"benign": {"images": 600_000, "token": "<a>"}, "malignant": {"images": 400_000, "token": "<b>"}}
    tree = {"output": str(tmp_path / "run"), "dataset": {"phantoms": {"images": 12}}, "classes": classes}
    path.write_text(yaml.safe_dump({**tree, "refine": None, "evaluate": {"arms": ["base", "lora+ti"]}}))
    return path


def test_without_a_rate_the_command_says_so_and_gives_the_rest(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "1,000,000" in shown and "not known; --probe measures it" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80
    assert not (file.parent / "run").exists(), "a plan writes nothing"


def test_with_a_price_and_rates_the_command_says_the_cost(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = dict.fromkeys((False, True), Rate(1.8, "a probe of 8 images on cuda: H200", 400_000.0))
    monkeypatch.setattr(probe, "probe_device", lambda config: "cuda")
    monkeypatch.setattr(probe, "probe_drawing", lambda *_: (drawing, np.zeros((1, 8, 8))))
    extracted = {"inception": Rate(0.01, "a probe", 8192.0), "texture": Rate(0.002, "a probe", 236.0)}
    monkeypatch.setattr(probe, "probe_extractors", lambda *_: extracted)
    flags = [
        "--cluster.gpus_per_actor=1",
        "--cluster.actors=100",
        "--cluster.cpus_per_actor=4",
        "--corpus.shard_size=256",
    ]
    assert main(["plan", str(file), "--probe", "--price=2.5", *flags]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "a shard of corpus takes 7.7 minutes" in " ".join(shown.split())
    assert main(["plan", str(file), "--probe", "--price=2.5", "--json", *flags]) == 0
    told = json.loads(capsys.readouterr().out)
    corpus = told["stages"][0]
    assert corpus["images"] == 1_000_000 and corpus["bytes"] == 4e11
    assert 500 <= corpus["gpu_hours"] < 520  # 1,000,000 x 1.8 s / 3600, and idle ends
    assert told["total"]["cost"] == pytest.approx(2.5 * told["total"]["gpu_hours"])


@pytest.mark.parametrize("flags", [["--price=2"], ["--price=-1", "--cluster.gpus_per_actor=1"]])
def test_a_price_that_means_nothing_is_refused(
    file: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(file), *flags]) == 2
    assert "--price" in capsys.readouterr().err


def test_a_missing_data_folder_is_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**tree, "dataset": {"path": "nowhere"}}))
    assert main(["plan", str(file)]) == 2
    assert "no folder nowhere" in capsys.readouterr().err
