"""The list of figures is complete, says what each was computed from, and agrees with a direct
computation."""

from dataclasses import replace

import numpy as np
import pytest

from busray.evidence.distances import arm_figures, clean_figures, clean_sentences
from busray.evidence.real import RealFeatures
from busray.evidence.stats.frechet import Moments, frechet
from busray.evidence.stats.kernel import kid, kid_difference, kid_p_value
from busray.evidence.stats.neighbours import neighbourhood
from busray.evidence.stats.separability import separability
from busray.records import INCEPTION, Figure
from tests.support.features import arm_features, features, independent, real_features


@pytest.fixture
def real() -> RealFeatures:
    return real_features()


@pytest.fixture
def arms() -> dict[str, dict[str, np.ndarray]]:
    return arm_features()


def shortened(real: RealFeatures, n: int) -> RealFeatures:
    """With n test images of class m."""
    return independent({**real.features, "test": {**real.features["test"], "m": real.features["test"]["m"][:n]}})


def one(figures: list[Figure], floor: bool = False, **wanted: str) -> Figure:
    """The figure so wanted; of the paper's mixture only where that is."""
    found = [f for f in figures if f.floor == floor and all(getattr(f, key) == value for key, value in wanted.items())]
    found = [f for f in found if f.protocol != "paper-mixture" or "protocol" in wanted]
    assert len(found) == 1, found
    return found[0]


def test_an_arms_fid_is_that_of_its_images_alone_against_the_reference(real: RealFeatures, arms: dict) -> None:
    figures = arm_figures(arms, real, "test")
    overall = one(figures, metric="fid", arm="base", class_name="all", protocol="synthetic-only")
    images = np.concatenate([arms["base"]["b"], arms["base"]["m"][:10]])  # 12 and 6 of the reference: 2 to 1
    others = np.concatenate([real.features["test"]["b"], real.features["test"]["m"]])
    assert overall.value == pytest.approx(frechet(Moments.of(images), Moments.of(others)))
    assert (overall.n, overall.n_reference, overall.reference, overall.extractor) == (30, 18, "test", INCEPTION)
    benign = one(figures, metric="kid", arm="base", class_name="b")
    assert benign.value == pytest.approx(kid(arms["base"]["b"], real.features["test"]["b"]).value)
    assert one(figures, metric="kid_p_value", arm="base", class_name="all").value == 0.001
    assert one(figures, metric="kid_p_value", floor=True, class_name="all").value > 0.001
    assert benign.interval is not None and benign.interval[0] < benign.value < benign.interval[1]


def test_every_figure_says_how_the_images_were_framed(real: RealFeatures, arms: dict) -> None:
    assert {(f.frame, f.size) for f in arm_figures(arms, real, "test")} == {("letterbox", 64)}


def test_images_of_a_unit_count_as_one_draw_in_every_kernel_figure(real: RealFeatures, arms: dict) -> None:
    units = {split: {name: np.array([f"{split} {name} {i // 2}" for i in range(len(rows))])
                     for name, rows in by.items()} for split, by in real.features.items()}  # fmt: skip
    arms = {arm: {"b": np.tile(by["b"], (2, 1))[:30], "m": by["m"][:15]} for arm, by in arms.items()}
    figures = arm_figures(arms, replace(real, units=units), "test")
    for name in ("b", "m"):
        base, better, test = arms["base"][name], arms["lora+ti"][name], real.features["test"][name]
        train, of_train, of_test = real.features["train"][name], units["train"][name], units["test"][name]
        expected = {
            ("kid", "base", False): kid(base, test, of_test),
            ("kid_difference", "lora+ti", False): kid_difference(better, base, test, of_test),
            ("kid", "real", True): kid(train, test, of_test, of_train),
        }
        for (metric, arm, floor), estimate in expected.items():
            found = one(figures, floor, metric=metric, arm=arm, class_name=name)
            assert found.against == ("base" if metric == "kid_difference" else None)
            assert found.value == pytest.approx(estimate.value, abs=1e-9)
            assert found.interval == pytest.approx(estimate.interval, abs=1e-9)
        p_value = one(figures, metric="kid_p_value", floor=True, class_name=name).value
        order = np.random.default_rng(0).permutation(len(train))
        assert p_value == kid_p_value(train[order], test, of_test, of_train[order])


def test_the_halves_of_all_real_images_share_no_unit(real: RealFeatures, arms: dict) -> None:
    twins = {
        split: {name: np.repeat(rows, 2, axis=0) for name, rows in by.items()} for split, by in real.features.items()
    }
    units = {split: {name: np.repeat(labels, 2) for name, labels in by.items()} for split, by in real.units.items()}
    floor = arm_figures(arms, replace(real, features=twins, units=units), "all")
    assert (
        one(floor, metric="fid", floor=True, class_name="b").value > 1e-3
    )  # 0 if each image had its twin on the other side


def test_the_papers_mixture_holds_every_real_image_against_itself_with_the_arms_added(
    real: RealFeatures, arms: dict
) -> None:
    figures = arm_figures(arms, real, "test")
    mixture = one(figures, metric="fid", arm="lora+ti", class_name="all", protocol="paper-mixture")
    everything = np.concatenate([real.features[s][c] for c in ("b", "m") for s in ("train", "val", "test")])
    added = np.concatenate([everything, arms["lora+ti"]["b"], arms["lora+ti"]["m"][:15]])
    assert mixture.value == pytest.approx(frechet(Moments.of(added), Moments.of(everything)))
    assert (mixture.n, mixture.n_reference, mixture.reference) == (72 + 35, 72, "all")
    assert mixture.value < one(figures, metric="fid", arm="lora+ti", class_name="all", protocol="synthetic-only").value
    single = one(figures, metric="fid", arm="lora+ti", class_name="b", protocol="paper-mixture")
    all_b = np.concatenate([real.features[s]["b"] for s in ("train", "val", "test")])
    added = np.concatenate([all_b, arms["lora+ti"]["b"]])
    assert single.value == pytest.approx(frechet(Moments.of(added), Moments.of(all_b)))
    assert (single.n, single.n_reference, single.reference) == (48 + 20, 48, "all")


@pytest.mark.parametrize("reference", ["train", "val", "test", "all"])
def test_the_floor_never_holds_an_image_against_itself(real: RealFeatures, arms: dict, reference: str) -> None:
    floor = one(arm_figures(arms, real, reference), metric="fid", floor=True, class_name="all")
    assert floor.value > 1e-3
    assert floor.protocol == "real-against-real"
    if reference == "test":
        assert (floor.n, floor.n_reference) == (20 + 10, 18)


def test_every_arm_and_the_floor_count_as_many_images_of_each_class(real: RealFeatures, arms: dict) -> None:
    figures = arm_figures({arm: {"b": by["b"], "m": by["m"][:9]} for arm, by in arms.items()}, real, "test")
    for name, n in (("all", 18 + 9), ("b", 20), ("m", 9)):
        mine = [f for f in figures if f.class_name == name and f.protocol != "paper-mixture"]
        assert {f.n for f in mine} == {n} and {f.protocol for f in mine} == {"synthetic-only", "real-against-real"}


def test_fid_has_a_spread_from_disjoint_parts_and_more_images_only_narrow_it(real: RealFeatures, arms: dict) -> None:
    few = one(arm_figures(arms, real, "test"), metric="fid", arm="base", class_name="b")
    assert few.replicates == 5 and few.interval is not None and few.interval[0] < few.value < few.interval[1]
    more = {"base": {"b": features(200, 5, 2.0), "m": features(200, 6, 3.0)}}
    many = one(arm_figures(more, real, "test"), metric="fid", arm="base", class_name="b")
    assert many.n == 30 and many.replicates == 6 and many.interval is not None
    others = Moments.of(real.features["test"]["b"])
    values = [frechet(Moments.of(more["base"]["b"][:180][i::6]), others) for i in range(6)]
    assert many.value == pytest.approx(np.mean(values))
    half = 2.570582 * np.std(values, ddof=1) / 6**0.5  # Student's t at 97.5 %, 5 degrees of freedom
    assert many.interval == pytest.approx((np.mean(values) - half, np.mean(values) + half), rel=1e-5)


def test_an_auc_stands_beside_its_floor(real: RealFeatures, arms: dict) -> None:
    figures = arm_figures(arms, real, "test")
    base = one(figures, metric="told_apart_auc", arm="base", class_name="b")
    floor = one(figures, metric="told_apart_auc", floor=True, class_name="b")
    units = np.array([f"b {i}" for i in range(20)])
    expected = separability(arms["base"]["b"], real.features["test"]["b"], real.units["test"]["b"], units)
    assert (base.value, base.interval) == (expected.value, expected.interval) and base.value > 0.9
    assert base.interval is not None and floor.interval is not None
    assert floor.interval[0] < 0.5 < floor.interval[1]


def test_a_class_mix_that_differs_tells_no_real_images_apart(arms: dict) -> None:
    """Classes far apart, few of one in the reference and as many of both elsewhere."""
    sizes = {"train": (40, 40), "val": (9, 9), "test": (40, 12)}
    real = independent({split: {"b": features(b, b), "m": features(m, m + 1, 9.0)} for split, (b, m) in sizes.items()})
    figures = arm_figures({"base": {"b": features(40, 5, 1.0), "m": features(40, 6, 10.0)}}, real, "test")
    floor = one(figures, metric="told_apart_auc", floor=True, class_name="all")
    assert floor.n == 52 and floor.interval is not None and floor.interval[0] < 0.5 < floor.interval[1]
    assert one(figures, metric="kid_p_value", floor=True, class_name="all").value > 0.05


def test_units_in_one_class_only_tell_no_images_of_the_same_classes_apart() -> None:
    """Classes far apart; the images of one come in pairs among the real ones, so that one a
    unit is another mix."""
    real = independent(
        {split: {"b": features(60, i), "m": features(40, i + 9, 9.0)} for i, split in enumerate(("train", "test"))}
    )
    units = {
        split: {**by, "m": np.array([f"{split} m {i // 2}" for i in range(40)])} for split, by in real.units.items()
    }
    drawn = {"base": {"b": features(60, 5), "m": features(40, 6, 9.0)}}
    figures = arm_figures(drawn, replace(real, units=units), "test")
    assert one(figures, metric="kid_p_value", class_name="all").value > 0.05
    apart = {"base": {"b": features(60, 5), "m": features(40, 6, 11.0)}}
    figures = arm_figures(apart, replace(real, units=units), "test")
    assert one(figures, metric="kid_p_value", class_name="all").value == 0.001


def test_a_class_that_is_not_drawn_is_in_no_overall_figure(real: RealFeatures, arms: dict) -> None:
    figures = arm_figures({arm: {"b": by["b"]} for arm, by in arms.items()}, real, "test")
    mine = [f for f in figures if f.protocol != "paper-mixture"]
    overall, of_b = ([replace(f, class_name="") for f in mine if f.class_name == name] for name in ("all", "b"))
    assert len(overall) > 20 and overall == of_b and {f.n_reference for f in overall} == {12}


@pytest.mark.parametrize("reference", ["test", "all"])
def test_a_class_that_the_floor_lacks_is_in_no_overall_figure(real: RealFeatures, arms: dict, reference: str) -> None:
    """Overall figures of arms and floor are of the same classes: one without training images,
    or with one unit."""
    if reference == "test":
        lacking = independent({**real.features, "train": {"b": real.features["train"]["b"]}})
    else:
        m = {split: rows["m"] for split, rows in real.features.items()}
        units = {split: {**by, "m": np.full(len(m[split]), "one patient")} for split, by in real.units.items()}
        lacking = replace(real, units=units)
    figures = arm_figures(arms, lacking, reference)
    figures = [f for f in figures if f.protocol != "paper-mixture"]
    overall = [f for f in figures if f.class_name == "all"]
    of_b = {(f.metric, f.arm, f.floor): f.value for f in figures if f.class_name == "b"}
    assert {(f.metric, f.arm, f.floor): f.value for f in overall} == of_b and len(of_b) > 20


def test_fid_at_infinity_is_not_estimable_from_few_images_and_is_from_many(real: RealFeatures, arms: dict) -> None:
    assert not [f for f in arm_figures(arms, real, "test") if f.metric == "fid_infinity"]
    large = independent(
        {"train": {"b": features(60, 1)}, "val": {"b": features(9, 2)}, "test": {"b": features(2100, 3)}}
    )
    figures = arm_figures({"base": {"b": features(4400, 4, 0.1)}}, large, "test")
    found = one(figures, metric="fid_infinity", class_name="b")
    assert found.value < one(figures, metric="fid", class_name="b").value


def test_fid_at_infinity_is_of_the_images_drawn_in_the_references_shares(real: RealFeatures) -> None:
    """Of classes far apart 3 to 1 in the reference, as many drawn of each."""
    split = {
        name: {"b": features(3 * n, n), "m": features(n, n + 1, 2.0)} for name, n in (("train", 20), ("test", 600))
    }
    drawn = {"base": {"b": features(6000, 4), "m": features(6000, 5, 2.0)}}
    found = one(arm_figures(drawn, independent(split), "test"), metric="fid_infinity", class_name="all")
    assert found.value < 0.05 and (found.n, found.n_reference) == (8000, 2400)


def test_differences_are_of_the_pairs_asked_for(real: RealFeatures, arms: dict) -> None:
    three = {**arms, "ti": {"b": features(20, 7, 0.5), "m": features(20, 8, 1.5)}}
    figures = arm_figures(three, real, "test", [("base", "ti"), ("ti", "lora+ti")])
    found = [f for f in figures if f.metric == "kid_difference" and f.class_name == "b"]
    assert [(f.arm, f.against) for f in found] == [("ti", "base"), ("lora+ti", "ti")]
    expected = (
        kid(three["ti"]["b"], real.features["test"]["b"]).value
        - kid(three["base"]["b"], real.features["test"]["b"]).value
    )
    assert found[0].value == pytest.approx(expected)


def test_a_class_with_too_few_images_has_no_figure_of_its_own(real: RealFeatures, arms: dict) -> None:
    real = shortened(real, 2)
    figures = arm_figures(arms, real, "test")
    assert not [f for f in figures if f.class_name == "m"]
    assert one(figures, metric="fid", arm="base", class_name="all", protocol="synthetic-only").n_reference == 14


def test_neighbourhoods_are_given_for_arms_and_floor_where_there_are_neighbours_enough(
    real: RealFeatures, arms: dict
) -> None:
    figures = arm_figures(arms, real, "test")
    near = neighbourhood(arms["lora+ti"]["b"], real.features["test"]["b"])
    for metric in ("precision", "recall", "density", "coverage"):
        found = one(figures, metric=metric, arm="lora+ti", class_name="b")
        assert found.value == getattr(near, metric) and found.reference == "test"
        assert one(figures, metric=metric, floor=True, class_name="all").value > 0
    real = shortened(real, 5)
    fewer = arm_figures(arms, real, "test")
    assert not {f.metric for f in fewer if f.class_name == "m"} & {"precision", "recall", "density", "coverage"}


def test_only_inceptions_distances_are_called_fid_and_kid(real: RealFeatures, arms: dict) -> None:
    ours = arm_figures(arms, real, "test")
    others = arm_figures(arms, replace(real, extractor="texture-1"), "test")
    assert not [f for f in others if f.metric.startswith(("fid", "kid")) or f.extractor != "texture-1"]
    renamed = [f.metric.replace("fid", "fd-texture").replace("kid", "kd-texture") for f in ours]
    assert [f.metric for f in others] == renamed and any(f.metric == "fd-texture" and f.floor for f in others)
    assert [f.value for f in others] == [f.value for f in ours]


def test_figures_are_repeated_without_annotated_images_and_say_so(real: RealFeatures, arms: dict) -> None:
    clean = {split: {name: np.ones(len(rows), bool) for name, rows in by.items()}
             for split, by in real.features.items()}  # fmt: skip
    assert clean_figures(arms, real, clean) == []
    clean["test"]["b"][:3] = False
    clean["train"]["b"][5:] = False
    found = clean_figures(arms, real, clean)
    assert {f.reference for f in found} == {"test-clean"}
    assert {f.protocol for f in found} == {"synthetic-only", "real-against-real"}
    kept = one(found, metric="kid", arm="base", class_name="b")
    assert (kept.n, kept.n_reference) == (5, 9)
    assert kept.value == pytest.approx(kid(arms["base"]["b"][:5], real.features["test"]["b"][3:]).value, abs=1e-9)
    assert clean_sentences(real.units, clean, ["b", "m"]) == []


def test_a_gated_corpus_has_figures_without_annotated_images_too(real: RealFeatures, arms: dict) -> None:
    """And differences of the pairs that are seed-paired alone: the gated arm with what it was
    before."""
    clean = {split: {name: np.ones(len(rows), bool) for name, rows in by.items()}
             for split, by in real.features.items()}  # fmt: skip
    clean["test"]["b"][:3] = False
    gated = {**arms, "lora+ti+gate": {"b": features(20, 8, 0.1), "m": features(20, 9, 1.1)}}
    found = clean_figures(gated, real, clean, [("lora+ti", "lora+ti+gate")])
    assert {f.arm for f in found if f.metric == "fid" and not f.floor} == set(gated)
    assert {(f.arm, f.against) for f in found if f.metric == "kid_difference"} == {("lora+ti+gate", "lora+ti")}


def test_where_a_class_has_too_few_clean_images_a_sentence_says_so(real: RealFeatures, arms: dict) -> None:
    clean = {split: {name: np.ones(len(rows), bool) for name, rows in by.items()}
             for split, by in real.features.items()}  # fmt: skip
    assert clean_sentences(real.units, clean, ["b", "m"]) == []
    clean["test"]["m"][2:] = False
    assert clean_figures(arms, real, clean) == []
    (said,) = clean_sentences(real.units, clean, ["b", "m"])
    assert said == (
        "No figures without burned-in annotations: each class needs 3 independent images that have none in test and "
        "train, and there are 2 of m in test."
    )
    clean["train"]["b"][:] = False
    assert "2 of m in test, 0 of b in train" in clean_sentences(real.units, clean, ["b", "m"])[0]
    assert clean_sentences(real.units, clean, ["n"]) != []
