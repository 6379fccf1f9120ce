"""The class gate: what it rejects is drawn again from the next attempt's seed, within a budget,
and is on record."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from busray.config import Sampling
from busray.config_file import validate
from busray.corpus.commit import (
    commit_shard,
    committed_shards,
    count_first_draws,
    read_commit,
    read_commits,
    read_rows,
    rejected_first_draws,
)
from busray.corpus.encode import Row
from busray.corpus.gate import GatedShard, draw_gated, place
from busray.corpus.manifest import orphans, publish_manifest
from busray.corpus.plan import extend_plan, pending, shards
from busray.corpus.recipe import Recipe, corpus_identity
from busray.corpus.record import claim_corpus
from busray.corpus.verify import verify
from busray.identity import seed_for
from busray.model.sample import DrawnImage, Sampler, draw_shard
from busray.records import Commit, ContentBox, Execution, ImageSpec, Redrawn, Shard
from busray.storage import Store

SIZE, BATCH, ATTEMPTS = 8, 4, 3
SHARD = Shard("benign", 8, 8)
EXECUTION = Execution("cpu", "float32", BATCH, 1, {})
NEEDED = {9: 1, 11: 2, 12: 9, 15: 1}
"""index -> the first attempt whose image shows its class; 0 for all others, never within the
budget for 12."""


def recipe(fingerprint: str = "f" * 64) -> Recipe:
    prompts, words = {"benign": ("a {token}",)}, {"benign": "mass"}
    return Recipe(fingerprint, 5, prompts, words, (ContentBox(0, 0, SIZE, SIZE),), {})


class FakeSampler:
    """Grey images whose first pixels are index and attempt; the batch is padded with copies of
    its last image."""

    size, keep_txt2img = SIZE, True
    halve_batch = Sampler.halve_batch
    decode_batch, is_float32 = BATCH, True

    def __init__(self, broken: Callable[[ImageSpec], bool] = lambda spec: False) -> None:
        self.sampling = Sampling(batch_size=BATCH)
        self.broken = broken
        self.batches: list[list[tuple[int, int]]] = []

    def draw(self, specs: Sequence[ImageSpec]) -> list[DrawnImage]:
        self.batches.append([(one.index, one.attempt) for one in specs])
        return [self._one(spec) for spec in specs]

    def _one(self, spec: ImageSpec) -> DrawnImage:
        image = np.zeros((SIZE, SIZE), np.uint8)
        image[0, :2] = spec.index, spec.attempt
        return DrawnImage(spec, image, 255 - image, "latents or pixels are not finite" if self.broken(spec) else None)


def judge(name: str, images: np.ndarray) -> np.ndarray:
    assert name == "benign"
    return np.array(
        [0.9 if image[0, 1] >= NEEDED.get(int(image[0, 0]), 0) else 0.1 + image[0, 1] / 10 for image in images]
    )


def through_the_gate(sampler: FakeSampler | None = None, shard: Shard = SHARD, of: Recipe | None = None) -> GatedShard:
    sampler = sampler or FakeSampler()
    draw = lambda specs: draw_shard(sampler, specs, lambda n: None)  # noqa: E731
    return draw_gated(of or recipe(), shard, draw, judge, 0.5, ATTEMPTS)


def commit(store: Store, gated: GatedShard, shard: Shard, fingerprint: str, format: str = "parquet") -> Commit:
    def row(one: DrawnImage) -> Row:
        return Row(one.spec, one.image, one.txt2img)

    rows = [row(one) for one in gated.images if not one.problem]
    rejects = [(one.spec.image_id, one.problem) for one in gated.images if one.problem]
    first = [row(one) for one in gated.first_draws]
    about = {"fingerprint": fingerprint}
    return commit_shard(store, shard, rows, rejects, about, EXECUTION, format, 1.0, gated.redrawn, first)


def draw_corpus(store: Store, images: int = 12, shard_size: int = 8, format: str = "parquet") -> str:
    fingerprint = claim_corpus(store, {"seed": 5, "gate": {"classifier": "d" * 64}})
    segments = extend_plan(store, {"benign": images}, shard_size)
    todo = pending(shards(segments), committed_shards(store))
    for shard in todo:
        commit(store, through_the_gate(shard=shard, of=recipe(fingerprint)), shard, fingerprint, format)
    return publish_manifest(store, segments, drawn=todo)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


# ---- rounds ----


def test_each_image_keeps_the_first_attempt_that_passes_and_ids_stay() -> None:
    gated = through_the_gate()
    kept = {one.spec.index: one.spec.attempt for one in gated.images if not one.problem}
    assert kept == {8: 0, 9: 1, 10: 0, 11: 2, 13: 0, 14: 0, 15: 1}
    assert [one.spec.image_id for one in gated.images] == [recipe().spec("benign", i).image_id for i in range(8, 16)]
    assert all(one.image[0, 1] == one.spec.attempt for one in gated.images)


def test_a_redraws_seeds_are_those_of_its_attempt() -> None:
    for one in through_the_gate().images:
        for stage, seed in (("txt2img", one.spec.seed_txt2img), ("img2img", one.spec.seed_img2img)):
            assert seed == seed_for(5, "benign", one.spec.index, one.spec.attempt, stage)


def test_a_spent_budget_is_a_problem_that_says_so_and_no_more_is_drawn() -> None:
    sampler = FakeSampler()
    problems = {one.spec.index: one.problem for one in through_the_gate(sampler).images if one.problem}
    assert problems == {12: "class gate: 3 draws rejected, at best 0.300 for benign, not 0.5"}
    assert max(attempt for batch in sampler.batches for _, attempt in batch) == ATTEMPTS - 1


def test_what_was_rejected_is_counted_with_what_the_gate_saw() -> None:
    gated = through_the_gate()
    spec = recipe().spec
    assert gated.redrawn == (
        Redrawn(spec("benign", 9).image_id, (0.1,), 1),
        Redrawn(spec("benign", 11).image_id, (0.1, 0.2), 2),
        Redrawn(spec("benign", 12).image_id, (0.1, 0.2, 0.30000000000000004), None),
        Redrawn(spec("benign", 15).image_id, (0.1,), 1),
    )
    assert [(one.spec.index, one.spec.attempt) for one in gated.first_draws] == [(9, 0), (11, 0), (12, 0), (15, 0)]


def test_redraws_share_batches() -> None:
    sampler = FakeSampler()
    through_the_gate(sampler)
    first = [[(i, 0) for i in range(8, 12)], [(i, 0) for i in range(12, 16)]]
    assert sampler.batches == [*first, [(9, 1), (11, 1), (12, 1), (15, 1)], [(11, 2), (12, 2)]]


def test_every_draws_place_in_its_batch_follows_from_the_record(store: Store) -> None:
    sampler = FakeSampler()
    record = commit(store, through_the_gate(sampler), SHARD, "f" * 64)
    rounds = {0: sampler.batches[0] + sampler.batches[1], 1: sampler.batches[2], 2: sampler.batches[3]}
    for attempt, drawn in rounds.items():
        for position, (index, _) in enumerate(drawn):
            assert place(record, recipe().spec("benign", index, attempt)) == (position, len(drawn))


def test_an_image_that_cannot_be_drawn_is_not_drawn_again() -> None:
    sampler = FakeSampler(lambda spec: (spec.index, spec.attempt) in ((10, 0), (11, 1)))
    gated = through_the_gate(sampler)
    problems = {one.spec.index: one.problem for one in gated.images if one.problem}
    assert problems.keys() == {10, 11, 12} and problems[10] == problems[11] == "latents or pixels are not finite"
    (eleven,) = [one for one in gated.redrawn if one.image_id.endswith("11")]
    assert eleven.rejected == (0.1,) and eleven.kept is None


def test_a_probability_that_is_nan_does_not_pass() -> None:
    draw = FakeSampler().draw
    gated = draw_gated(recipe(), Shard("benign", 0, 2), draw, lambda name, images: np.array([np.nan] * 2), 0.5, 1)
    assert all(one.problem for one in gated.images)


# ---- records ----


@pytest.mark.parametrize("format", ["parquet", "png"])
def test_a_gated_corpus_is_verified_and_what_is_planned_is_committed_or_quarantined(store: Store, format: str) -> None:
    draw_corpus(store, 16, format=format)
    found = verify(store)
    assert found.problems == () and (found.planned, found.committed, found.quarantined) == (16, 15, 1)
    assert orphans(store) == []
    rows = [row for one in read_commits(store) for row in read_rows(store, one, ["index", "attempt"]).to_pylist()]
    assert {row["index"]: row["attempt"] for row in rows if row["attempt"]} == {9: 1, 11: 2, 15: 1}


def test_rows_of_attempt_0_and_the_rejected_ones_are_all_first_draws(store: Store) -> None:
    record = commit(store, through_the_gate(), SHARD, "f" * 64)
    assert read_commit(store, SHARD) == record
    rejected = rejected_first_draws(record)
    assert rejected is not None and rejected.rows == 4
    columns = ["index", "attempt", "image_txt2img"]
    parts = [read_rows(store, one, columns).to_pylist() for one in (record, rejected)]
    firsts = sorted(row["index"] for rows in parts for row in rows if row["attempt"] == 0)
    assert firsts == list(range(8, 16)) and count_first_draws(record) == 8


def test_an_image_that_could_not_be_drawn_has_no_first_draw_and_one_that_could_not_be_drawn_again_has(
    store: Store,
) -> None:
    never, not_again = (10, 0), (9, 1)
    broken = FakeSampler(lambda spec: (spec.index, spec.attempt) in (never, not_again))
    record = commit(store, through_the_gate(broken), SHARD, "f" * 64)
    assert record.rows == 5 and count_first_draws(record) == 7


def test_the_corpus_folder_holds_no_rejected_image(store: Store) -> None:
    draw_corpus(store)
    assert len(list(store.list("data"))) == len(list(store.list("commits"))) == 2
    assert len(list(store.list("first-draws"))) == 1  # no image of the first shard was rejected


def test_a_corpus_that_was_interrupted_equals_one_that_was_not(store: Store, tmp_path: Path) -> None:
    other = Store(str(tmp_path / "undisturbed"))
    digest = draw_corpus(other, 16)
    assert draw_corpus(store, 8) != digest
    assert draw_corpus(store, 16) == digest
    store.delete(next(key for key in store.list("commits") if "00000008" in key))
    assert draw_corpus(store, 16) == digest
    assert {k: store.read(k) for k in store.list("data")} == {k: other.read(k) for k in other.list("data")}
    assert list(store.list("first-draws")) == list(other.list("first-draws"))


def test_the_first_draws_of_a_driver_that_lost_are_orphans(store: Store) -> None:
    gated = through_the_gate()
    first = commit(store, gated, SHARD, "f" * 64)
    brighter = [replace(one, image=one.image + 1) for one in gated.first_draws]
    assert commit(store, replace(gated, first_draws=brighter), SHARD, "f" * 64) == first
    (orphan,) = orphans(store)
    assert orphan.startswith("first-draws/benign/") and first.first_draws and orphan != first.first_draws.object


def test_first_draws_that_are_gone_or_others_are_found(store: Store) -> None:
    draw_corpus(store)
    (key,) = store.list("first-draws")
    held = store.read(key)
    store.delete(key)
    assert any("not there" in problem for problem in verify(store).problems)
    store.put_once(key, held[:-1])
    assert any("is not what its commit records" in problem for problem in verify(store).problems)


def test_an_attempt_that_the_record_does_not_tell_is_found(store: Store) -> None:
    fingerprint = claim_corpus(store, {"seed": 5})
    segments = extend_plan(store, {"benign": 12}, 12)
    (shard,) = shards(segments)
    gated = through_the_gate(shard=shard, of=recipe(fingerprint))
    commit(store, replace(gated, redrawn=gated.redrawn[1:], first_draws=[]), shard, fingerprint)
    publish_manifest(store, segments)
    assert any("attempts are not those" in problem for problem in verify(store).problems)


# ---- identity ----


def test_the_gate_is_part_of_a_gated_corpus_and_of_no_other() -> None:
    tree = {"dataset": {"path": "data"}, "classes": {"benign": {}}}
    plain, gated = validate(tree), validate({**tree, "corpus": {"gate": {"attempts": 5}}})
    common = ({"revision": None, "files": {}}, None, "hash", True)
    assert "gate" not in corpus_identity(plain, *common)
    assert corpus_identity(plain, *common) == corpus_identity(gated, *common, None)
    identity = corpus_identity(gated, *common, "d" * 64)
    assert identity["gate"] == {"classifier": "d" * 64, "threshold": 0.5, "attempts": 5}
