"""Features of every arm and of the real images -> the flat list of figures, and what they say in sentences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise

import numpy as np

from busray.quality.frechet import Moments, frechet_to
from busray.quality.kernel import Estimate, kid, kid_difference, kid_p_value
from busray.quality.neighbours import neighbourhood
from busray.records import CLASS_ALL, Figure, distance_names

Features = Mapping[str, np.ndarray]
"""class -> float32 [n, d]"""
REAL = "real"
FEWEST = 3
"""Images a side below which a class has no figure of its own."""
NEIGHBOURS = 5
"""The k of precision, recall, density and coverage."""
OTHER = {"train": "test", "val": "train", "test": "train"}
"""reference -> the split it is held against for the floor; `all` holds its own halves against each other."""


def arm_figures(
    arms: Mapping[str, Features],
    real: Mapping[str, Features],
    reference: str,
    extractor: str,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> list[Figure]:
    """FID, KID and neighbourhood of each arm, the real floor, and seed-paired KID differences of `pairs` of arms.

    pairs: (before, after); default: each arm and the one after it.

    Another extractor's distances have its distance_names: they are never called FID or KID.

    arms: arm -> class -> features, row i of a class drawn from the same seed in each arm. real: split -> class ->
    features. Overall figures pool the classes. `paper-mixture` holds all real images against the same images with the
    arm's added, as the ISBI 2026 paper seems to.
    """
    frechet, kernel = distance_names(extractor)
    wanted = _split(real, reference)
    everything = _pooled(_split(real, "all"))
    figures = list(_floor(real, wanted, reference, extractor, arms))
    for arm, features in arms.items():
        for name, images, others in _sides(features, wanted):
            common = (images, others, reference, "synthetic-only", extractor, name, arm)
            figures.append(_figure(frechet, frechet_to(others, Moments.of(images)), *common))
            figures.append(_figure(kernel, kid(images, others), *common))
            figures.append(_figure(f"{kernel}_p_value", kid_p_value(images, others), *common))
            figures += [_figure(metric, value, *common) for metric, value in _neighbours(images, others)]
        mixture = np.concatenate([everything, _pooled(features)])
        value = frechet_to(everything, Moments.of(mixture))
        figures.append(_figure(frechet, value, mixture, everything, "all", "paper-mixture", extractor, CLASS_ALL, arm))
    for before, after in pairwise(arms) if pairs is None else pairs:
        first, second = arms[before], arms[after]
        for name, images, others in _sides(second, wanted):
            earlier = _pooled(first) if name == CLASS_ALL else first[name]
            common = (images, others, reference, "synthetic-only", extractor, name, f"{after} - {before}")
            figures.append(_figure(f"{kernel}_difference", kid_difference(images, earlier, others), *common))
    return figures


def _figure(
    metric: str,
    value: float | Estimate,
    images: np.ndarray,
    others: np.ndarray,
    reference: str,
    protocol: str,
    extractor: str,
    class_name: str,
    arm: str,
) -> Figure:
    number, interval = (value.value, value.interval) if isinstance(value, Estimate) else (value, None)
    return Figure(metric, number, interval, len(images), len(others), reference, protocol, extractor, class_name, arm)


def _split(real: Mapping[str, Features], split: str) -> Features:
    if split != "all":
        return real[split]
    names = sorted({name for by in real.values() for name in by})
    return {name: np.concatenate([by[name] for by in real.values() if name in by]) for name in names}


def _pooled(features: Features) -> np.ndarray:
    return np.concatenate([features[name] for name in sorted(features)])


def _sides(images: Features, others: Features) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(class, images, reference) for all classes together, then for each that has enough on both sides."""
    yield CLASS_ALL, _pooled(images), _pooled(others)
    for name in sorted(images):
        if name in others and min(len(images[name]), len(others[name])) >= FEWEST:
            yield name, images[name], others[name]


def _floor(
    real: Mapping[str, Features], wanted: Features, reference: str, extractor: str, arms: Mapping[str, Features]
) -> Iterator[Figure]:
    """Real against real, with as many images a class as the arms have where there are: FID depends on n."""
    frechet, kernel = distance_names(extractor)
    first = next(iter(arms.values()))
    if reference == "all":
        other = {name: rows[0::2] for name, rows in wanted.items()}
        wanted = {name: rows[1::2] for name, rows in wanted.items()}
    else:
        other = _split(real, OTHER[reference])
    other = {name: rows[: len(first[name])] if name in first else rows for name, rows in other.items()}
    for name, images, others in _sides(other, wanted):
        common = (images, others, reference, "real-against-real", extractor, name, REAL)
        yield _figure(f"{frechet}_floor", frechet_to(others, Moments.of(images)), *common)
        yield _figure(f"{kernel}_floor", kid(images, others), *common)
        yield _figure(f"{kernel}_p_value_floor", kid_p_value(images, others), *common)
        for metric, value in _neighbours(images, others):
            yield _figure(f"{metric}_floor", value, *common)


def _neighbours(images: np.ndarray, others: np.ndarray) -> list[tuple[str, float]]:
    """Precision, recall, density and coverage by name, where there are neighbours enough."""
    if min(len(images), len(others)) <= NEIGHBOURS:
        return []
    return list(asdict(neighbourhood(images, others, NEIGHBOURS)).items())


def verdicts(figures: list[Figure]) -> list[str]:
    """The order found and whether differences between arms stand out from chance, as sentences."""
    sentences = []
    for metric, digits, scale in (("fid", 1, 1), ("kid", 2, 1000)):
        found = [f for f in figures if (f.metric, f.protocol, f.class_name) == (metric, "synthetic-only", CLASS_ALL)]
        if found:
            ranked = sorted(found, key=lambda f: f.value)
            order = " < ".join(f"{f.arm} {scale * f.value:.{digits}f}" for f in ranked)
            unit = " x 1000" if scale != 1 else ""
            sentences.append(f"Order by {metric.upper()}{unit} (lower is nearer to the real images): {order}.")
    chances = [f for f in figures if f.metric.startswith("kid_p_value") and f.class_name == CLASS_ALL]
    if chances:
        told = ", ".join(f"{f.arm} {f.value:.3f}" for f in chances)
        sentences.append(
            f"Probability of such a KID if nothing but chance set the images apart (permutations): {told}."
        )
    for figure in figures:
        if figure.metric == "kid_difference" and figure.class_name == CLASS_ALL and figure.interval:
            low, high = figure.interval
            says = "excludes 0" if _excludes_zero(figure) else "contains 0, so the arms are not told apart"
            sentences.append(
                f"KID x 1000, {figure.arm}, seed-paired: {1000 * figure.value:+.2f}, 95 % interval "
                f"{1000 * low:+.2f} to {1000 * high:+.2f}, which {says}."
            )
    return sentences + _texture_verdict(figures)


def _texture_verdict(figures: list[Figure]) -> list[str]:
    """The order by texture beside what other real images reach, and which arms it tells apart, in one sentence."""
    overall = [f for f in figures if f.class_name == CLASS_ALL and f.protocol != "paper-mixture"]
    ranked = sorted((f for f in overall if f.metric == "fd-texture"), key=lambda f: f.value)
    if not ranked:
        return []
    order = " < ".join(f"{f.arm} {f.value:.2f}" for f in ranked)
    floor = "".join(f"; other real images {f.value:.2f}" for f in overall if f.metric == "fd-texture_floor")
    apart = [f.arm for f in overall if f.metric == "kd-texture_difference" and _excludes_zero(f)]
    told = f"; seed-paired intervals of KD-texture exclude 0 for: {', '.join(apart) or 'no pair of arms'}"
    return [f"Order by ultrasound texture (FD-texture; lower is nearer to the real images): {order}{floor}{told}."]


def _excludes_zero(figure: Figure) -> bool:
    return figure.interval is not None and not figure.interval[0] <= 0 <= figure.interval[1]
