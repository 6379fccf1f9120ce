"""What the distance figures come to, as sentences."""

from busray.evidence.stats.frechet import ESTIMABLE
from busray.records import CLASS_ALL, INCEPTION, REAL, TOLD_APART, Figure


def verdicts(figures: list[Figure]) -> list[str]:
    """The order found and whether differences between arms stand out from chance, as sentences.

    Of synthetic images and the floor against test images only: what trained or chose the models says nothing about how
    close they come, and real images that an autoencoder decoded are no arm to be ranked.
    """
    protocols = ("synthetic-only", "real-against-real")
    mine = [f for f in figures if f.class_name == CLASS_ALL and f.reference == "test" and f.protocol in protocols]
    if not mine:
        held = ", ".join(dict.fromkeys(f.reference for f in figures if f.protocol == "synthetic-only"))
        return [f"No verdict: only test images carry one, and the reference is {held} (evaluate.reference)."]
    sentences = []
    for metric, digits, scale in (("fid", 1, 1), ("kid", 2, 1000)):
        if ranked := sorted((f for f in mine if f.metric == metric), key=lambda f: f.value):
            order = " < ".join(f"{f.arm} {scale * f.value:.{digits}f}" for f in ranked)
            floor = "".join(
                f"; other real images {scale * f.value:.{digits}f}" for f in mine if f.metric == f"{metric}_floor"
            )
            unit = " x 1000" if scale != 1 else ""
            sentences.append(f"Order by {metric.upper()}{unit} (lower is nearer to the real images): {order}{floor}.")
    sentences += _at_infinity(mine)
    if told := [f for f in mine if f.metric.removesuffix("_floor") == TOLD_APART and f.extractor == INCEPTION]:
        areas = ", ".join(f"{f.arm} {_with_interval(f, 1, 3)}" for f in sorted(told, key=lambda f: f.arm == REAL))
        sentences.append(
            f"AUC of a classifier that tells images from test images (0.5: it cannot; 95 % intervals): {areas}."
        )
    chances = [f for f in mine if f.metric.startswith("kid_p_value")]
    if chances:
        told = ", ".join(f"{f.arm} {f.value:.3f}" for f in chances)
        sentences.append(
            f"Probability of such a KID if nothing but chance set the images apart (permutations): {told}."
        )
    for figure in mine:
        if figure.metric == "kid_difference" and figure.interval:
            low, high = figure.interval
            says = "excludes 0" if excludes_zero(figure) else "contains 0, so the arms are not told apart"
            sentences.append(
                f"KID x 1000, {figure.arm}, seed-paired: {1000 * figure.value:+.2f}, 95 % interval "
                f"{1000 * low:+.2f} to {1000 * high:+.2f}, which {says}."
            )
    return sentences + _texture_verdict(mine)


def _at_infinity(figures: list[Figure]) -> list[str]:
    """FID-infinity of each arm, or that there is none."""
    fids = [f for f in figures if f.metric == "fid"]
    found = [f for f in figures if f.metric == "fid_infinity"]
    if found:
        return [f"FID-infinity (line through 1/n): {', '.join(f'{f.arm} {f.value:.1f}' for f in found)}."]
    if fids:
        return [
            f"FID-infinity: not estimable (it needs {ESTIMABLE:,} reference images and twice as many drawn ones; "
            f"here are {fids[0].n_reference:,} and {fids[0].drawn:,})."
        ]
    return []


def _with_interval(figure: Figure, scale: float, digits: int) -> str:
    low, high = figure.interval or (figure.value, figure.value)
    return f"{scale * figure.value:.{digits}f} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def _texture_verdict(figures: list[Figure]) -> list[str]:
    """The order by texture beside what other real images reach, and which arms it tells apart, in one sentence."""
    ranked = sorted((f for f in figures if f.metric == "fd-texture"), key=lambda f: f.value)
    if not ranked:
        return []
    order = " < ".join(f"{f.arm} {f.value:.2f}" for f in ranked)
    floor = "".join(f"; other real images {f.value:.2f}" for f in figures if f.metric == "fd-texture_floor")
    apart = [f.arm for f in figures if f.metric == "kd-texture_difference" and excludes_zero(f)]
    told = f"; seed-paired intervals of KD-texture exclude 0 for: {', '.join(apart) or 'no pair of arms'}"
    return [f"Order by ultrasound texture (FD-texture; lower is nearer to the real images): {order}{floor}{told}."]


def excludes_zero(figure: Figure) -> bool:
    return figure.interval is not None and not figure.interval[0] <= 0 <= figure.interval[1]
