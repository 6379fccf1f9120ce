"""How many images the figures look at, of how many, and what the figures of all of them cost."""

from collections.abc import Mapping, Sequence

from busray.evidence.distances import WHOLE_CORPUS
from busray.records import CLASS_ALL, MOST_REPLICATES, Figure
from busray.report.metrics import METRICS
from busray.report.tables import distinct, first, select


def coverage_sentences(
    compared: Mapping[str, int], corpus: Mapping[str, int], bytes_an_image: Mapping[str, int], *, asked: bool
) -> list[str]:
    """How much of a corpus the figures look at; nothing where they look at all of it.

    compared, corpus: class -> images. bytes_an_image: extractor -> of its features; empty where all
    images are measured anyway. asked: evaluate.images says how many are compared.
    """
    part = {name: n for name, n in corpus.items() if compared[name] < n}
    if not part:
        return []
    listed = ", ".join(f"{compared[name]:,} of {n:,} images of {name}" for name, n in part.items())
    reason = "as evaluate.images says"
    if not asked:
        reason = f"{MOST_REPLICATES} for each real image of the class, or as many as the smallest class has"
    sentences = [f"Figures look at the first images of each arm: {listed} ({reason})."]
    if bytes_an_image:
        left = sum(n - compared[name] for name, n in part.items())
        sizes = ", ".join(f"{left * size / 1e9:,.2f} GB by {name}" for name, size in bytes_an_image.items())
        sentences.append(
            f"evaluate.whole_corpus=true adds the distances of all {sum(corpus.values()):,} images: features of "
            f"{left:,} more images ({sizes}); `busray plan CONFIG --evaluate.whole_corpus=true --probe` says the hours."
        )
    return sentences


def whole_corpus_sentences(
    figures: Sequence[Figure], bytes_an_image: Mapping[str, int], seconds: Mapping[str, float]
) -> list[str]:
    """The distances of all images beside those at equal n, and what they cost.

    seconds: extractor -> of the longest command that took them.
    """
    sentences: list[str] = []
    for metric in METRICS:
        whole = select(figures, metric=metric, protocol=WHOLE_CORPUS)
        overall = first(whole, class_name=CLASS_ALL)
        if overall is None:
            continue
        each = [f for f in whole if f.class_name != CLASS_ALL]
        by_class = "".join(f", {f.class_name} {_number(f)}" for f in each)
        title, name = METRICS[metric].name, overall.extractor
        text = f"{title} of all images of {overall.arm}: {_number(overall)}{by_class}."
        equal = first(
            figures, metric=metric, protocol="synthetic-only", class_name=CLASS_ALL, arm=overall.arm,
            reference=overall.reference,
        )  # fmt: skip
        if equal is not None:
            text += f" At equal n it is {_number(equal)}; the two are not comparable, since {title} falls as n grows."
        if name in bytes_an_image:
            text += f" Cost: features of {overall.n:,} images, {overall.n * bytes_an_image[name] / 1e9:,.2f} GB"
            text += f", {seconds[name]:,.0f} s." if name in seconds else "."
        sentences.append(text)
    return sentences


def _number(figure: Figure) -> str:
    return f"{METRICS[figure.metric].number(figure.value)} (n = {figure.n:,})"


def measured_whole(figures: Sequence[Figure]) -> list[str]:
    """The extractors by which all images were measured."""
    return distinct(select(figures, protocol=WHOLE_CORPUS), "extractor")
