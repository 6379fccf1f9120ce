"""What the distances of the arms come to, in sentences."""

from collections.abc import Callable, Sequence

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
        references = ", ".join(dict.fromkeys(f.reference for f in figures if f.protocol == "synthetic-only"))
        return [f"No verdict: it needs test images as the reference, and evaluate.reference is {references}."]
    sentences = []
    for metric in ("fid", "kid"):
        if order := _order(tested, metric):
            sentences.append(f"Order by {METRICS[metric].title} (lower is nearer to the real images): {order}.")
    sentences += _at_infinity(tested)
    areas = [f for f in tested if f.metric == SEPARABILITY_AUC and f.extractor == INCEPTION]
    if areas:
        sentences.append(
            "AUC of a classifier that separates an arm's images from test images (0.5: not distinguishable; "
            f"95 % intervals): {_each_arm(areas, METRICS[SEPARABILITY_AUC].text)}."
        )
    p_values = [f for f in tested if f.metric == "kid_p_value"]
    if p_values:
        listed = _each_arm(p_values, lambda f: p_text(f.value))
        sentences.append(
            f"Probability of a KID this high if an arm's images were like the test images (permutations): {listed}."
        )
    return [*sentences, *_kid_differences(tested), *_texture(tested)]


def _order(figures: Sequence[Figure], name: str) -> str:
    """The arms by a metric, lowest first, with its floor; empty where no arm has it."""
    metric = METRICS[name]
    ranked = sorted((f for f in figures if f.metric == name and not f.floor), key=lambda f: f.value)
    if not ranked:
        return ""
    floors = [f"; {metric.floor} {metric.number(f.value)}" for f in figures if f.metric == name and f.floor]
    return " < ".join(f"{f.arm} {metric.number(f.value)}" for f in ranked) + "".join(floors)


def _each_arm(figures: Sequence[Figure], text: Callable[[Figure], str]) -> str:
    """`arm text, arm text`, the floor last."""
    floor_last = sorted(figures, key=lambda f: f.floor)
    return ", ".join(f"{OTHER_REAL if f.floor else f.arm} {text(f)}" for f in floor_last)


def _at_infinity(figures: Sequence[Figure]) -> list[str]:
    """FID-infinity of each arm, or why there is none."""
    at_infinity = [f for f in figures if f.metric == "fid_infinity"]
    if at_infinity:
        return [f"FID-infinity (line through 1/n): {_each_arm(at_infinity, lambda f: f'{f.value:.1f}')}."]
    fid = next((f for f in figures if f.metric == "fid" and not f.floor), None)
    if fid is None:
        return []
    return [
        f"FID-infinity: not estimable (it needs {FEWEST_FOR_INFINITY:,} reference images and twice as many synthetic "
        f"ones; here are {fid.n_reference:,} and {fid.drawn:,})."
    ]


def _kid_differences(figures: Sequence[Figure]) -> list[str]:
    sentences = []
    for f in figures:
        if f.metric == "kid_difference" and f.interval:
            contains = "excludes 0: the arms are" if excludes_zero(f) else "contains 0: the arms are not"
            sentences.append(
                f"Difference in KID x 1000, {arms_text(f)}, paired by seed: {METRICS['kid'].text(f, '+')}. "
                f"The 95 % interval {contains} distinguishable."
            )
    return sentences


def _texture(figures: Sequence[Figure]) -> list[str]:
    """The order by texture with its floor, and which arms differ in it, in one sentence."""
    order = _order(figures, "fd-texture")
    if not order:
        return []
    different = [arms_text(f) for f in figures if f.metric == "kd-texture_difference" and excludes_zero(f)]
    return [
        f"Order by ultrasound texture (FD-texture; lower is nearer to the real images): {order}; "
        f"seed-paired intervals of KD-texture exclude 0 for: {', '.join(different) or 'no pair of arms'}."
    ]
