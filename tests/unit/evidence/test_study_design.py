"""A study's arms, what each is fed with, and the leaks that it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from busray.config import Config
from busray.config_file import load_config
from busray.data.duplicates import shared_images
from busray.data.read import scan
from busray.evidence.study_design import (
    TrainingMix,
    first_rows,
    gate_pairs,
    mix_positions,
    refuse_foreign_corpus,
    refuse_leaks,
    study_arms,
    synthetic_counts,
    units_of,
)
from busray.records import DataSet, SourceImage, UserError
from tests.support.paths import ROOT

LABELS = np.array([0, 0, 0, 0, 1, 1])
DRAWN = np.array([0] * 8 + [1] * 8)


def image(name: str, group: str | None = None) -> SourceImage:
    return SourceImage(f"benign/{name}.png", "benign", 8, 8, "L", f"digest of {name}", group=group)


def dataset(train: str = "abc", val: str = "de", test: str = "fg") -> DataSet:
    sides = ([image(name) for name in side] for side in (train, val, test))
    return DataSet("hash", 8, "letterbox", 1, *(tuple(side) for side in sides), left_out=())


def test_arms_are_real_synthetic_and_mixed_at_each_ratio_pretrained_and_three_controls() -> None:
    assert [arm.name for arm in study_arms((1.0, 0.5))] == [
        "real",
        "synthetic@0.5",
        "synthetic@1",
        "mixed@0.5",
        "mixed@1",
        "pretrained@1",
        "real+classical",
        "real+balanced",
        "real+repeated@1",
    ]


def test_arms_of_one_name_are_fed_alike_whatever_the_other_ratios() -> None:
    """Their names are those of their stored trainings."""
    few, more = ({arm.name: arm.mixes for arm in study_arms(ratios)} for ratios in ((0.5,), (0.5, 2.0)))
    same = few.keys() & more.keys()
    assert {name: few[name] for name in same} == {name: more[name] for name in same}


def test_a_gated_corpus_has_each_mixture_without_the_gate_too_and_all_other_arms_as_they_were() -> None:
    plain, gated = study_arms((1.0, 0.5)), study_arms((1.0, 0.5), gated=True)
    further = [arm for arm in gated if arm not in plain]
    assert [arm.name for arm in further] == ["ungated@0.5", "ungated@1"]
    assert [arm for arm in gated if arm not in further] == plain
    at = {arm.name: arm.mixes for arm in gated}
    pairs = gate_pairs(at)
    assert pairs == [("mixed@0.5", "ungated@0.5"), ("mixed@1", "ungated@1")]
    for mixed, ungated in pairs:
        assert at[ungated] == tuple(replace(mix, draws="first draws") for mix in at[mixed])
    assert {mix.draws for arm in plain for mix in arm.mixes} == {"released"} and not gate_pairs(a.name for a in plain)


def test_released_images_and_first_draws_are_equally_many_from_the_same_start_of_the_plan() -> None:
    """Image 1 was drawn again and passed; for image 2 the budget was spent, so only its first
    draw is there."""
    drawn = [(3, 0, "passed"), (0, 0, "passed"), (1, 1, "passed"), (4, 0, "passed"), (1, 0, "no"), (2, 0, "no")]
    rows = [{"index": index, "attempt": attempt, "judged": judged} for index, attempt, judged in drawn]
    released = first_rows("released", [row for row in rows if row["judged"] == "passed"], 3)
    assert [(row["index"], row["attempt"]) for row in released] == [(0, 0), (1, 1), (3, 0)]
    assert [(row["index"], row["attempt"]) for row in first_rows("first draws", rows, 3)] == [(0, 0), (1, 0), (2, 0)]
    assert len(first_rows("first draws", rows, 9)) == 5


def test_every_arm_spends_all_of_the_same_steps_and_only_the_control_is_augmented_otherwise() -> None:
    for arm in study_arms((0.5, 2.0)):
        assert sum(mix.share for mix in arm.mixes) == pytest.approx(1)
        kinds = {mix.augmentation for mix in arm.mixes}
        assert kinds == ({"classical"} if arm.name == "real+classical" else {"mirror"})


def test_pretraining_sees_no_real_image_first_and_no_synthetic_one_last() -> None:
    first, last = next(arm for arm in study_arms((0.5, 2.0)) if arm.name == "pretrained@2").mixes
    assert (first.real, first.synthetic) == (False, 2.0) and (last.real, last.synthetic) == (True, 0.0)


def test_synthetic_images_keep_the_classes_shares_of_the_real_ones() -> None:
    assert synthetic_counts(LABELS, 2, 0.5) == [2, 1] and synthetic_counts(LABELS, 2, 1.5) == [6, 3]
    assert synthetic_counts(LABELS, 2, 0.01) == [1, 1]


def test_a_larger_corpus_holds_the_smaller_one() -> None:
    _, small = mix_positions(TrainingMix(False, 0.5), LABELS, DRAWN, 2)
    real, large = mix_positions(TrainingMix(False, 1.5), LABELS, DRAWN, 2)
    assert not len(real) and set(small) < set(large) and (DRAWN[large] == 0).sum() == 6


def test_repeated_real_images_are_as_many_as_the_synthetic_ones_they_stand_in_for() -> None:
    real, none = mix_positions(TrainingMix(True, repeated=1.5), LABELS, DRAWN, 2)
    ours, drawn = mix_positions(TrainingMix(True, 1.5), LABELS, DRAWN, 2)
    assert not len(none) and len(real) == len(ours) + len(drawn) == 15
    assert np.bincount(LABELS[real]).tolist() == [10, 5]


def test_too_small_a_corpus_is_an_error_and_not_a_smaller_arm() -> None:
    with pytest.raises(ValueError, match="12 synthetic images are needed, there are 8"):
        mix_positions(TrainingMix(False, 3.0), LABELS, DRAWN, 2)


# ---- leaks ----


def test_units_join_near_duplicates_and_groups() -> None:
    images = [image("a"), image("b", "p1"), image("c", "p1"), image("d"), image("e")]
    assert units_of(images, [["benign/a.png", "benign/b.png"]]) == {
        "benign/a.png": "benign/a.png",
        "benign/b.png": "benign/a.png",
        "benign/c.png": "benign/a.png",
        "benign/d.png": "benign/d.png",
        "benign/e.png": "benign/e.png",
    }


def test_a_clean_split_is_accepted_with_duplicates_inside_a_side() -> None:
    refuse_leaks(dataset(), [["benign/a.png", "benign/b.png"], ["benign/f.png", "benign/g.png"]])


@pytest.mark.parametrize(("held", "taken"), [("test", "train"), ("val", "train"), ("test", "val")])
def test_a_planted_leak_of_each_kind_between_any_two_splits_is_refused(held: str, taken: str) -> None:
    clean = dataset()
    ours, theirs = getattr(clean, taken)[0], getattr(clean, held)[0]

    def planted(a: SourceImage, b: SourceImage) -> DataSet:
        return replace(clean, **{taken: (a, *getattr(clean, taken)[1:]), held: (b, *getattr(clean, held)[1:])})

    with pytest.raises(UserError, match="same file content"):
        refuse_leaks(planted(ours, replace(theirs, sha256=ours.sha256)), [])
    with pytest.raises(UserError, match="one group"):
        refuse_leaks(planted(replace(ours, group="p"), replace(theirs, group="p")), [])
    with pytest.raises(UserError, match="near-duplicates in common"):
        refuse_leaks(clean, [[ours.file, theirs.file]])


def test_a_corpus_drawn_with_another_split_or_without_a_hash_is_refused() -> None:
    refuse_foreign_corpus("a" * 64, {"run.json": "a" * 64})
    for carried in ("b" * 64, None):
        with pytest.raises(UserError, match="adapters"):
            refuse_foreign_corpus("a" * 64, {"run.json": "a" * 64, "adapters.json": carried})


def test_images_of_another_folder_that_are_ours_are_found_under_any_name(phantom_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "benign").mkdir()
    names = ["benign", "malignant"]
    ours = scan(phantom_folder, names).images
    assert shared_images(phantom_folder, ours[:6], phantom_folder, ours[6:]) == []
    (tmp_path / "benign" / "renamed.png").write_bytes((phantom_folder / ours[3].file).read_bytes())
    theirs = scan(tmp_path, ["benign"]).images
    assert shared_images(phantom_folder, ours, tmp_path, theirs) == [(ours[3].file, "benign/renamed.png")]


CONFIGS = ROOT / "configs"
BUSI_TRAIN = {"benign": 277, "malignant": 132, "normal": 85}
"""Training images of BUSI by the split that the repository's configs ask for."""


def shipped(name: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml", [] if name == "demo" else ["--dataset.path=BUSI"])


@pytest.mark.parametrize("name", ["demo", "busi-tiny", "busi-sd15"])
def test_the_repositorys_configs_declare_a_study_that_their_corpus_can_feed(name: str) -> None:
    config = shipped(name)
    study, phantoms = config.study, config.dataset.phantoms
    assert study.primary is not None
    assert {study.primary.arm, study.primary.against} <= {arm.name for arm in study_arms(study.ratios)}
    for label, settings in config.classes.items():
        left = 1 - config.dataset.val - config.dataset.test
        train = round(phantoms.images * left) if phantoms else BUSI_TRAIN[label]
        assert synthetic_counts(np.zeros(train), 1, max(study.ratios)) <= [settings.images]


@pytest.mark.parametrize("name", ["demo", "busi-tiny", "busi-ablate"])
def test_the_repositorys_shards_fill_their_batches(name: str) -> None:
    config = shipped(name)
    assert config.corpus.shard_size is not None and config.corpus.shard_size % config.sampling.batch_size == 0
