"""The audit's statistics against closed forms and brute force; what it says of a corpus with
and without copies."""

from dataclasses import replace

import numpy as np
import pytest

from busray.evidence.audit import CLOSEST_PAIRS, audit_figures, audit_spread, tally
from busray.evidence.copies import BINS, FALSE_ALARMS, bin_edges, histograms
from busray.evidence.stats.intervals import wilson
from tests.support.audits import evidence, rows


def test_one_copy_in_ten_thousand_fails_the_gate_and_stands_first_among_the_closest(rng: np.random.Generator) -> None:
    of = evidence(rng, {4_321: 5})
    assert of.tally.images == 10_000
    assert of.tally.copies == 1
    assert len(of.tally.closest) == CLOSEST_PAIRS
    first = of.tally.closest[0]
    assert (first.class_name, first.index, first.original, first.kind) == ("benign", 4_321, 5, "image")
    assert first.excess > 0 > of.tally.closest[1].excess
    assert not of.passes


def test_a_corpus_without_copies_passes(rng: np.random.Generator) -> None:
    of = evidence(rng, {})
    assert of.tally.copies == 0 and of.passes


def test_a_search_that_misses_a_copy_planted_as_it_is_passes_no_corpus(rng: np.random.Generator) -> None:
    of = evidence(rng, {}, missed=1)
    assert of.tally.copies == 0 and not of.passes
    assert not replace(of, planted={}).passes


def test_near_duplicates_held_out_count_as_one_trial_of_a_false_alarm(rng: np.random.Generator) -> None:
    """Three images of one unit and one of another are taken for copies, of 300 in 100 units."""
    of = evidence(rng, {})
    of.held_out["image_score"][[0, 1, 2, 30]] = 1.0
    (figure,) = [f for f in audit_figures(of) if f.metric == "copy_false_positives"]
    assert (figure.value, figure.interval, figure.n) == (2 / 100, wilson(2, 100), 100)


def test_figures_state_errors_sensitivity_and_copied_training_images_by_corpus_size(rng: np.random.Generator) -> None:
    of = evidence(rng, {100: 5, 101: 5, 1_200: 6, 4_999: 7})
    figures = {(f.metric, f.arm, f.n): f for f in audit_figures(of)}
    assert figures["copies", "lora+ti", 10_000].value == 4e-4
    assert figures["copies", "lora+ti", 10_000].interval == wilson(4, 10_000)
    assert figures["copy_false_positives", "real", 100].interval == wilson(0, 100)
    assert figures["copy_false_alarms_expected", "lora+ti", 10_000].value == pytest.approx(FALSE_ALARMS)
    assert figures["copy_sensitivity", "planted blurred", 20].value == 0.75
    copied = {n: f.value for (metric, _, n), f in figures.items() if metric == "training_images_copied"}
    assert copied == {1250: 1 / 8, 2500: 2 / 8, 5000: 2 / 8, 10_000: 3 / 8}
    assert figures["near_duplicates_inside", "lora+ti", 400].value == 3 / 400
    assert all((f.frame, f.size, f.protocol) == ("letterbox", 128, "copy-audit") for f in figures.values())


def test_the_order_of_shards_changes_nothing(rng: np.random.Generator) -> None:
    held_out, counts = rows(rng, 100), {"benign": 300}
    shards = [("benign", rows(rng, 100, first)) for first in (0, 100, 200)]
    one, other = (tally(held_out, counts, order) for order in (shards, shards[::-1]))
    assert one.closest == other.closest
    assert (one.copies, one.copied) == (other.copies, other.copied)


def test_every_image_counts_in_the_histograms_and_a_copy_lies_beyond_the_threshold(rng: np.random.Generator) -> None:
    of = evidence(rng, {4_321: 5})
    spread = audit_spread(of)
    assert set(spread) == {"image", "lesion"}  # nothing was looked for by features
    for counted in spread.values():
        assert (sum(counted["held_out"]), sum(counted["corpus"])) == (300, 10_000)
    image = spread["image"]
    assert image["threshold"] == of.tally.limits["image"][0]
    beyond = np.linspace(*image["ends"], len(image["corpus"]) + 1)[:-1] > image["threshold"]
    assert np.array(image["corpus"])[beyond].sum() == 1 and not np.array(image["held_out"])[beyond].any()


def test_distances_are_counted_up_to_twice_the_largest_of_real_images_and_farther_ones_in_the_last_bin(
    rng: np.random.Generator,
) -> None:
    held_out, drawn = rows(rng, 4), rows(rng, 3)
    held_out["distance"], drawn["distance"] = (1.0, 2.0, 3.0, 5.0), (0.0, 5.0, 99.0)
    edges = bin_edges(held_out)
    assert (edges["features"][0], edges["features"][-1]) == (0, 10)
    assert np.nonzero(histograms(drawn, edges)["features"])[0].tolist() == [0, BINS // 2, BINS - 1]
