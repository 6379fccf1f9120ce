"""The circuit breaker: its bound is the binomial's, and it stops what is clearly broken only."""

import numpy as np
import pytest
from scipy.stats import binom

from busray.corpus.breaker import Breaker, at_least, is_clearly_above, most_rejected
from busray.records import Commit, Execution, Redrawn

EXECUTION = Execution("cpu", "float32", 2, 1, {})


def commit(count: int, quarantined: int = 0, redrawn: tuple[Redrawn, ...] = (), reason: str = "not finite") -> Commit:
    rejects = tuple((f"id-{i}", reason) for i in range(quarantined))
    return Commit("benign", 0, count, "key", "digest", 0, count - quarantined, rejects, EXECUTION, 1.0, redrawn)


@pytest.mark.parametrize("n", [1, 16, 256, 5_000, 1_000_000])
@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.9])
def test_the_tail_is_that_of_scipy(n: int, share: float) -> None:
    mean, deviation = n * share, np.sqrt(n * share * (1 - share))
    for k in {0, 1, n, *(int(mean + z * deviation) for z in (-2, 0, 1, 3, 6, 10))}:
        if 0 <= k <= n:
            exact = binom.sf(k - 1, n, share)
            assert at_least(k, n, share) == pytest.approx(exact, rel=1e-6, abs=1e-290), (k, n, share)


def test_the_tail_at_its_ends() -> None:
    assert at_least(0, 10, 0.1) == at_least(3, 10, 1.0) == 1.0
    assert at_least(11, 10, 0.1) == at_least(1, 10, 0.0) == 0.0


def test_a_corpus_of_broken_images_is_stopped_after_its_first_shard() -> None:
    why = Breaker(0.01, None).add(commit(256, 256, reason="latents or pixels are not finite"))
    assert why is not None
    assert "256 of 256 images were quarantined" in why and "id-0: latents or pixels are not finite" in why


def test_a_corpus_of_the_allowed_share_is_not_stopped(rng: np.random.Generator) -> None:
    stopped = 0
    for _ in range(50):
        breaker = Breaker(0.01, None)
        stopped += any(breaker.add(commit(256, int(k))) is not None for k in rng.binomial(256, 0.01, 400))
    assert stopped == 0


def test_twice_the_allowed_share_is_stopped_within_a_few_thousand_images(rng: np.random.Generator) -> None:
    breaker = Breaker(0.01, None)
    for shards, k in enumerate(rng.binomial(256, 0.02, 400), start=1):
        if breaker.add(commit(256, int(k))):
            assert 256 * shards < 10_000
            return
    pytest.fail("never stopped")


def test_one_quarantined_image_stops_nothing_even_where_none_is_allowed() -> None:
    assert Breaker(0.0, None).add(commit(8, 1)) is None
    assert Breaker(0.0, None).add(commit(256, 8)) is not None


def test_all_may_be_quarantined_where_all_are_allowed() -> None:
    assert Breaker(1.0, None).add(commit(256, 256)) is None
    assert not is_clearly_above(5, 10, 1.0)


def test_a_gate_that_rejects_more_than_its_attempts_can_mend_stops_the_run() -> None:
    assert most_rejected(0.01, 2) == pytest.approx(0.1)
    redrawn = tuple(Redrawn(f"id-{i}", (0.1,), 1) for i in range(128))
    breaker = Breaker(0.01, 2)
    why = breaker.add(commit(256, 0, redrawn))
    assert why is not None and "rejected 128 of 256 first draws" in why
    assert breaker.words() == "128 drawn again for the class gate"
    assert Breaker(0.01, 8).add(commit(256, 0, redrawn)) is None, "eight draws make up for it: 0.5^8 is 0.4 %"


def test_the_counts_are_told_in_words() -> None:
    breaker = Breaker(0.5, 8)
    breaker.add(commit(4, 0))
    assert breaker.words() == ""
    breaker.add(commit(4, 1, (Redrawn("id-0", (0.1, 0.2), None), Redrawn("id-1", (0.1,), 1))))
    assert breaker.words() == "1 quarantined, 2 drawn again for the class gate"
