"""What the distances of the arms come to, in sentences."""

from collections.abc import Callable, Sequence

from busray.evidence.stats.frechet import FEWEST_FOR_INFINITY
from busray.records import CLASS_ALL, INCEPTION, SEPARABILITY_AUC, Figure
from busray.report.metrics import METRICS, OTHER_REAL, arms_text, excludes_zero, p_text
from busray.report.tables import distinct, first, select, worst_class


def distance_sentences(figures: Sequence[Figure]) -> list[str]:
    """The order of the arms, and which differences between them chance does not explain.

    One sentence that says why, where the reference is not the test images.
    """
    # Images that trained or chose the models do not show how close these come: test images only.
    # Real images decoded by an autoencoder have another protocol: they are no arm to be ranked.
    protocols = ("synthetic-only", "real-against-real")
    by_class = select(figures, reference="test", protocol=protocols)
    tested = select(by_class, class_name=CLASS_ALL)
    if not tested:
        references = ", ".join(distinct(select(figures, protocol="synthetic-only"), "reference"))
        return [f"No verdict: it needs test images as the reference, and evaluate.reference is {references}."]
    sentences = []
    for metric in ("fid", "kid"):
        if order := _order(by_class, metric):
            title = METRICS[metric].title
            sentences.append(f"Order by {title} (lower is nearer to the real images): {order}.")
    sentences += _at_infinity(tested)
    if areas := select(tested, metric=SEPARABILITY_AUC, extractor=INCEPTION):
        sentences.append(
            "AUC of a classifier that separates an arm's images from test images (0.5: not "
            f"distinguishable; 95 % intervals): {_each_arm(areas, METRICS[SEPARABILITY_AUC].text)}."
        )
    if p_values := select(tested, metric="kid_p_value"):
        listed = _each_arm(p_values, lambda f: p_text(f.value))
        sentences.append(
            f"Probability of a KID this high if an arm's images were like the test images (permutations): {listed}."
        )
    return [*sentences, *_kid_differences(tested), *_texture(by_class)]


def _order(figures: Sequence[Figure], name: str) -> str:
    """The arms by a metric, lowest first, each with its worst class, and the floor; empty where no
    arm has it."""
    metric, ranked = METRICS[name], []
    overall = select(figures, metric=name, floor=False, class_name=CLASS_ALL)
    for f in sorted(overall, key=lambda f: f.value):
        worst = worst_class(figures, name, f.arm)
        of_class = f" (worst class {worst.class_name} {metric.number(worst.value)})" if worst else ""
        ranked.append(f"{f.arm} {metric.number(f.value)}{of_class}")
    order = " < ".join(ranked)
    # the floor is not ranked: it only shows how low an arm could come
    if order and (floor := first(figures, metric=name, floor=True, class_name=CLASS_ALL)):
        order += f"; {metric.floor} {metric.number(floor.value)}"
    return order


def _each_arm(figures: Sequence[Figure], text: Callable[[Figure], str]) -> str:
    """`arm text, arm text`, the floor last."""
    floor_last = sorted(figures, key=lambda f: f.floor)
    return ", ".join(f"{OTHER_REAL if f.floor else f.arm} {text(f)}" for f in floor_last)


def _at_infinity(figures: Sequence[Figure]) -> list[str]:
    """FID-infinity of each arm, or why there is none."""
    if at_infinity := select(figures, metric="fid_infinity"):
        listed = _each_arm(at_infinity, lambda f: f"{f.value:.1f}")
        return [f"FID-infinity (line through 1/n): {listed}."]
    fid = first(figures, metric="fid", floor=False)
    if fid is None:
        return []
    return [
        f"FID-infinity: not estimable (it needs {FEWEST_FOR_INFINITY:,} reference images and twice "
        f"as many synthetic ones; here are {fid.n_reference:,} and {fid.drawn:,})."
    ]


def _kid_differences(figures: Sequence[Figure]) -> list[str]:
    sentences = []
    for f in select(figures, metric="kid_difference"):
        if f.interval:
            contains = "contains 0: the arms are not"
            if excludes_zero(f):
                contains = "excludes 0: the arms are"
            difference = f"{arms_text(f)}, paired by seed: {METRICS['kid'].text(f, '+')}"
            sentences.append(f"Difference in KID x 1000, {difference}. The 95 % interval {contains} distinguishable.")
    return sentences


def _texture(figures: Sequence[Figure]) -> list[str]:
    """The order by texture with its floor, and which arms differ in it, in one sentence."""
    order = _order(figures, "fd-texture")
    if not order:
        return []
    pairs = select(figures, metric="kd-texture_difference", class_name=CLASS_ALL)
    different = ", ".join(map(arms_text, filter(excludes_zero, pairs))) or "no pair of arms"
    return [
        f"Order by ultrasound texture (FD-texture; lower is nearer to the real images): {order}; "
        f"seed-paired intervals of KD-texture exclude 0 for: {different}."
    ]
