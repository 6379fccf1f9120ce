"""The audit's statistics against closed forms and brute force; what it says of a corpus with and without copies."""

from dataclasses import replace

import numpy as np
import pytest

from busray.evidence.audit import CLOSEST, Evidence, audit_figures, audit_spread, tally
from busray.evidence.copies import BINS, FALSE_ALARMS, FOUND, KINDS, bin_edges, histograms
from busray.evidence.stats.intervals import wilson
from busray.report.audit import audit_rows, audit_sentences, closest_rows, copies_section, of_now

TRAINING = 8


def rows(rng: np.random.Generator, n: int, first: int = 0) -> np.ndarray:
    """FOUND rows of images that copy nothing."""
    found = np.zeros(n, FOUND)
    found["index"] = np.arange(first, first + n)
    for kind in KINDS:
        found[f"{kind}_score"] = rng.gumbel(0.1, 0.02, n)
        found[f"{kind}_of"] = rng.integers(0, TRAINING, n)
    return found


def evidence(rng: np.random.Generator, copies: dict[int, int], missed: int = 0) -> Evidence:
    """Of two classes of 5,000 images in five shards each; copies: index among the benign -> training image copied.

    Held-out images come in threes, and so many of the 20 planted as they are are missed."""
    held_out, shards = rows(rng, 300), []
    for name in ("benign", "malignant"):
        for first in range(0, 5000, 1000):
            found = rows(rng, 1000, first)
            for index, original in copies.items() if name == "benign" else ():
                if first <= index < first + 1000:
                    found["image_score"][index - first], found["image_of"][index - first] = 0.9, original
            shards.append((name, found))
    planted = rows(rng, 20)
    planted["lesion_score"][:15] = 0.8
    identical = rows(rng, 20)
    identical["image_score"][missed:] = 1.0
    units = np.array([f"cluster {i // 3}" for i in range(300)])
    counted = tally(held_out, {"benign": 5000, "malignant": 5000}, shards)
    copied = {"identical": identical, "blurred": planted}
    return Evidence(counted, held_out, units, copied, (3, 400), TRAINING, "lora+ti", "letterbox", 128)


def test_one_copy_in_ten_thousand_fails_the_gate_and_stands_first_among_the_closest(rng: np.random.Generator) -> None:
    of = evidence(rng, {4_321: 5})
    assert of.tally.images == 10_000
    assert of.tally.copies == 1
    assert len(of.tally.closest) == CLOSEST
    first = of.tally.closest[0]
    assert (first.class_name, first.index, first.original, first.kind) == ("benign", 4_321, 5, "image")
    assert first.excess > 0 > of.tally.closest[1].excess
    assert "1 of 10,000 images copy one of 8 training images" in audit_sentences(of)[0]
    assert not of.passes


def test_a_corpus_without_copies_passes(rng: np.random.Generator) -> None:
    of = evidence(rng, {})
    assert of.tally.copies == 0 and of.passes
    assert audit_sentences(of)[0] == (
        "Copies: none of 10,000 images was found to copy one of 8 training images; found of planted copies: identical "
        "100%, blurred 75%."
    )


def test_a_search_that_misses_a_copy_planted_as_it_is_passes_no_corpus(rng: np.random.Generator) -> None:
    of = evidence(rng, {}, missed=1)
    assert of.tally.copies == 0 and not of.passes
    said = audit_sentences(of)[0]
    assert "no verdict on 10,000 images" in said and "19 of 20 found" in said and "none of" not in said
    unplanted = replace(of, planted={})
    assert not unplanted.passes and "nothing was planted" in audit_sentences(unplanted)[0]


def test_near_duplicates_held_out_count_as_one_trial_of_a_false_alarm(rng: np.random.Generator) -> None:
    """Three images of one cluster and one of another are taken for copies, of 300 in 100 clusters."""
    of = evidence(rng, {})
    of.held_out["image_score"][[0, 1, 2, 30]] = 1.0
    (figure,) = [f for f in audit_figures(of) if f.metric == "copy_false_positives"]
    assert (figure.value, figure.interval, figure.n) == (2 / 100, wilson(2, 100), 100)
    assert "300 real images held out; of their 100 clusters 2 have one above" in audit_sentences(of)[1]


def test_what_is_set_beforehand_is_called_allowed_and_not_expected(rng: np.random.Generator) -> None:
    of = evidence(rng, {})
    assert audit_sentences(of)[1].startswith("False alarms allowed among 10,000 images: 0.05")
    shown = [row[0] for row in audit_rows([f.to_dict() for f in audit_figures(of)])[1]]
    assert "false alarms allowed in the corpus" in shown and not any("expected" in name for name in shown)


def test_near_duplicates_are_told_of_the_sample_and_not_of_the_corpus(rng: np.random.Generator) -> None:
    of = evidence(rng, {})
    said = "Inside the corpus: of 400 images sampled from 10,000, 3 have a near-duplicate among those 400."
    assert audit_sentences(of)[-1] == said
    (row,) = [row for row in audit_rows([f.to_dict() for f in audit_figures(of)])[1] if "near-duplicate" in row[0]]
    assert row[0] == "share of n sampled images with a near-duplicate among those n" and row[4] == "400"


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


def test_the_page_shows_verdict_figures_and_pairs_and_escapes_names(rng: np.random.Generator) -> None:
    of = evidence(rng, {7: 0})
    columns, pairs = closest_rows(of.tally.closest, ["<b>.png"] * TRAINING)
    figures = [f.to_dict() for f in audit_figures(of)]
    part = {"sentences": audit_sentences(of), "figures": figures, "closest": {"columns": columns, "rows": pairs}}
    page = copies_section(part, b"png")
    assert "<svg" not in page  # an audit of before histograms were counted
    drawn = copies_section({**part, "spread": audit_spread(of)}, None)
    assert drawn.count("<svg") == drawn.count("n = 300 real images held out and 10,000 of the corpus") == 2
    assert f"threshold {of.tally.limits['image'][0]:.3f}<" in drawn
    assert "1 of 10,000" in page and "&lt;b&gt;.png" in page and "<b>.png" not in page
    assert "data:image/png;base64," in page
    assert copies_section({}, None) == ""
    assert len(audit_rows(figures)[1]) == len(figures)


def test_an_audit_of_fewer_images_than_the_corpus_has_says_so_until_it_is_repeated(rng: np.random.Generator) -> None:
    of = evidence(rng, {})
    figures = [f.to_dict() for f in audit_figures(of)]
    part = {"sentences": audit_sentences(of), "figures": figures, "closest": {"columns": [], "rows": []}}
    grown = of_now(part, 10_001)
    said = "of an earlier state of this corpus (10,000 of 10,001 images): run `busray audit` again"
    assert said in grown["outdated"] and said in copies_section(grown, None)
    assert of_now(grown, 10_000)["outdated"] is None
    assert "earlier state" not in copies_section(of_now(part, 10_000), None)
    assert grown["sentences"] == part["sentences"]
