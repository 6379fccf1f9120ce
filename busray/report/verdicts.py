"""What the distances of the arms come to, in sentences."""

from collections.abc import Iterable, Sequence

from busray.evidence.stats.frechet import FEWEST_FOR_INFINITY
from busray.records import CLASS_ALL, INCEPTION, SEPARABILITY_AUC, Figure
from busray.report.metrics import METRICS, OTHER_REAL, arms_text, excludes_zero, p_text


def distance_sentences(figures: Sequence[Figure]) -> list[str]:
    """The order of the arms, and which differences between them chance does not explain.

    Only test images count as reference: images that trained or chose the models do not show how
    close these come. Real images decoded by an autoencoder are no arm to be ranked.
    """
    protocols = ("synthetic-only", "real-against-real")
    tested = [f for f in figures if f.class_name == CLASS_ALL and f.reference == "test" and f.protocol in protocols]
    if not tested:
        references = dict.fromkeys(f.reference for f in figures if f.protocol == "synthetic-only")
        named = ", ".join(references)
        return [f"No verdict: it needs test images as the reference, and evaluate.reference is {named}."]
    return [
        *_order(tested, "fid"),
        *_order(tested, "kid"),
        *_at_infinity(tested),
        *_separability(tested),
        *_kid_p_values(tested),
        *_kid_differences(tested),
        *_texture(tested),
    ]


def _order(figures: Sequence[Figure], metric: str) -> list[str]:
    ordered = _ordered(figures, metric)
    return [f"Order by {METRICS[metric].title} (lower is nearer to the real images): {ordered}."] if ordered else []


def _ordered(figures: Sequence[Figure], name: str) -> str:
    """The arms by a metric, lowest first, with its floor; empty where no arm has it."""
    metric = METRICS[name]
    ranked = sorted((f for f in figures if f.metric == name and not f.floor), key=lambda f: f.value)
    if not ranked:
        return ""
    floors = [f"; {metric.floor} {metric.number(f.value)}" for f in figures if f.metric == name and f.floor]
    return " < ".join(f"{f.arm} {metric.number(f.value)}" for f in ranked) + "".join(floors)


def _at_infinity(figures: Sequence[Figure]) -> list[str]:
    """FID-infinity of each arm, or why there is none."""
    at_infinity = [f for f in figures if f.metric == "fid_infinity"]
    if at_infinity:
        return [f"FID-infinity (line through 1/n): {_listed(f'{f.arm} {f.value:.1f}' for f in at_infinity)}."]
    fid = next((f for f in figures if f.metric == "fid" and not f.floor), None)
    if fid is None:
        return []
    return [
        f"FID-infinity: not estimable (it needs {FEWEST_FOR_INFINITY:,} reference images and twice as many synthetic "
        f"ones; here are {fid.n_reference:,} and {fid.drawn:,})."
    ]


def _separability(figures: Sequence[Figure]) -> list[str]:
    areas = [f for f in figures if f.metric == SEPARABILITY_AUC and f.extractor == INCEPTION]
    if not areas:
        return []
    arms_first = sorted(areas, key=lambda f: f.floor)
    named = _listed(f"{_arm(f)} {METRICS[SEPARABILITY_AUC].text(f)}" for f in arms_first)
    return [
        "AUC of a classifier that separates an arm's images from test images (0.5: not distinguishable; "
        f"95 % intervals): {named}."
    ]


def _arm(f: Figure) -> str:
    return OTHER_REAL if f.floor else f.arm


def _kid_p_values(figures: Sequence[Figure]) -> list[str]:
    p_values = [f for f in figures if f.metric == "kid_p_value"]
    if not p_values:
        return []
    named = _listed(f"{_arm(f)} {p_text(f.value)}" for f in sorted(p_values, key=lambda f: f.floor))
    return [f"Probability of a KID this high if an arm's images were like the test images (permutations): {named}."]


def _kid_differences(figures: Sequence[Figure]) -> list[str]:
    sentences = []
    for figure in figures:
        if figure.metric == "kid_difference" and figure.interval:
            contains = "excludes 0: the arms are" if excludes_zero(figure) else "contains 0: the arms are not"
            sentences.append(
                f"Difference in KID x 1000, {arms_text(figure)}, paired by seed: {METRICS['kid'].text(figure, '+')}. "
                f"The 95 % interval {contains} distinguishable."
            )
    return sentences


def _texture(figures: Sequence[Figure]) -> list[str]:
    """The order by texture with its floor, and which arms differ in it, in one sentence."""
    ordered = _ordered(figures, "fd-texture")
    if not ordered:
        return []
    different = [arms_text(f) for f in figures if f.metric == "kd-texture_difference" and excludes_zero(f)]
    return [
        f"Order by ultrasound texture (FD-texture; lower is nearer to the real images): {ordered}; "
        f"seed-paired intervals of KD-texture exclude 0 for: {_listed(different) or 'no pair of arms'}."
    ]


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(parts)
