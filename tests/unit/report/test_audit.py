"""The copy audit's part of the report: sentences, figures, pairs, histograms."""

from dataclasses import replace

import numpy as np

from busray.evidence.audit import audit_figures, audit_spread
from busray.report.audit import audit_rows, audit_sentences, closest_rows, copies_section, of_now
from tests.support.audits import TRAINING, evidence


def test_the_first_sentence_counts_copies_and_says_what_the_search_finds(rng: np.random.Generator) -> None:
    assert "1 of 10,000 images copy one of 8 training images" in audit_sentences(evidence(rng, {4_321: 5}))[0]
    assert audit_sentences(evidence(rng, {}))[0] == (
        "Copies: none of 10,000 images was found to copy one of 8 training images; planted copies found: identical "
        "100%, blurred 75%."
    )


def test_there_is_no_verdict_where_the_search_misses_an_exact_copy(rng: np.random.Generator) -> None:
    of = evidence(rng, {}, missed=1)
    sentence = audit_sentences(of)[0]
    assert "no verdict on 10,000 images" in sentence and "19 of 20 found" in sentence and "none of" not in sentence
    assert "nothing was planted" in audit_sentences(replace(of, planted={}))[0]


def test_near_duplicates_held_out_count_as_one_false_alarm(rng: np.random.Generator) -> None:
    """Three images of one unit and one of another are taken for copies, of 300 in 100 units."""
    of = evidence(rng, {})
    of.held_out["image_score"][[0, 1, 2, 30]] = 1.0
    sentence = audit_sentences(of)[1]
    assert "300 held-out real images" in sentence and "Of their 100 independent units, 2 have an image" in sentence


def test_what_is_set_beforehand_is_called_allowed_and_not_expected(rng: np.random.Generator) -> None:
    of = evidence(rng, {})
    assert audit_sentences(of)[1].startswith("False alarms allowed among 10,000 images: 0.05")
    shown = [row[0] for row in audit_rows(audit_figures(of))[1]]
    assert "false alarms allowed in the corpus" in shown and not any("expected" in name for name in shown)


def test_near_duplicates_are_told_of_the_sample_and_not_of_the_corpus(rng: np.random.Generator) -> None:
    of = evidence(rng, {})
    said = "Inside the corpus: of 400 images sampled from 10,000, 3 have a near-duplicate among those 400."
    assert audit_sentences(of)[-1] == said
    (row,) = [row for row in audit_rows(audit_figures(of))[1] if "near-duplicate" in row[0]]
    assert row[0] == "share of n sampled images with a near-duplicate among those n" and row[4] == "400"


def test_the_page_shows_verdict_figures_and_pairs_and_escapes_names(rng: np.random.Generator) -> None:
    of = evidence(rng, {7: 0})
    columns, pairs = closest_rows(of.tally.closest, ["<b>.png"] * TRAINING)
    figures = [f.to_dict() for f in audit_figures(of)]
    part = {"sentences": audit_sentences(of), "figures": figures, "closest": {"columns": columns, "rows": pairs}}
    page = copies_section({**part, "spread": audit_spread(of)}, b"png").inside
    assert page.count("<svg") == page.count("n = 300 held-out real images and 10,000 of the corpus") == 2
    assert f"threshold {of.tally.limits['image'][0]:.3f}<" in page
    assert "1 of 10,000" in page and "&lt;b&gt;.png" in page and "<b>.png" not in page
    assert "data:image/png;base64," in page
    assert copies_section({}, None).inside == ""
    assert len(audit_rows(audit_figures(of))[1]) == len(figures)


def test_an_audit_of_fewer_images_than_the_corpus_has_says_so_until_it_is_repeated(rng: np.random.Generator) -> None:
    of = evidence(rng, {})
    figures = [f.to_dict() for f in audit_figures(of)]
    part = {"sentences": audit_sentences(of), "figures": figures, "closest": {"columns": [], "rows": []}, "spread": {}}
    grown = of_now(part, 10_001)
    said = "of an earlier state of this corpus (10,000 of 10,001 images): run `busray audit` again"
    assert said in grown["outdated"] and said in copies_section(grown, None).inside
    assert of_now(grown, 10_000)["outdated"] is None
    assert "earlier state" not in copies_section(of_now(part, 10_000), None).inside
    assert grown["sentences"] == part["sentences"]
