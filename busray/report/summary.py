"""The first screen of the report: three sentences for a reader who is no engineer, one small table.

Pure: what report.json holds and its figures in, text out.
"""

from collections.abc import Sequence

from busray.evidence.classes import CONSISTENCY, JUDGE
from busray.records import CLASS_ALL, CLEAN_TEST, INCEPTION, REAL, SEPARABILITY_AUC, Arm, Figure
from busray.report.metrics import METRICS, NONE, OTHER_REAL
from busray.report.tables import Json, Table, distinct, first, select, worst_class
from busray.report.warnings import SEPARABLE

TABLE_NOTE = (
    "FID and KID: distance to real images, lower is nearer. Agreement: the share of an arm's images in which a "
    "classifier of real images sees the class that was asked for."
)


def drawn_arm(report: Json) -> str:
    """The arm that the released corpus is before any class gate; empty where no settings say it."""
    settings = report.get("run", {}).get("settings") or {}
    method = (settings.get("adapters") or {}).get("method")
    return Arm(method, refined=bool(settings.get("refine"))).name if method else ""


def short_sentences(report: Json, figures: Sequence[Figure]) -> list[str]:
    """What the corpus is; whether its images show their class; whether they pass for real ones."""
    arm, corpus = drawn_arm(report), report.get("corpus")
    if not arm or not corpus:
        return []
    tested = select(figures, arm=arm, floor=False, class_name=CLASS_ALL, against=None)
    return [_what_it_is(report, corpus), _shows_its_class(figures, arm), *_passes_for_real(tested)]


def _what_it_is(report: Json, corpus: Json) -> str:
    counts = ", ".join(f"{n:,} {name}" for name, n in corpus["classes"].items())
    learned = sum(((report.get("dataset") or {}).get("counts") or {}).get("train", {}).values())
    source = f" that learned from {learned:,} real images" if learned else ""
    return f"This corpus has {corpus['committed']:,} synthetic images ({counts}), drawn by a model{source}."


def _shows_its_class(figures: Sequence[Figure], arm: str) -> str:
    seen = first(figures, metric=CONSISTENCY, arm=arm, class_name=CLASS_ALL)
    judge = first(figures, metric=JUDGE, class_name=CLASS_ALL)
    if seen is None or judge is None:
        return "Nobody has measured whether the images show the class that was asked for."
    text = (
        f"A classifier of real images sees the class that was asked for in {_of_hundred(seen.value)} synthetic "
        f"images, and the true class in {_of_hundred(judge.value)} real ones"
    )
    worst = worst_class(select(figures, protocol=seen.protocol), CONSISTENCY, arm)
    return f"{text}; the weakest class is {worst.class_name} with {_of_hundred(worst.value)}." if worst else f"{text}."


def _passes_for_real(tested: Sequence[Figure]) -> list[str]:
    area = first(tested, metric=SEPARABILITY_AUC, extractor=INCEPTION)
    if area is None:
        return []
    passes_not = area.interval is not None and area.interval.low > SEPARABLE
    return [
        f"Of a real and a synthetic image, a computer picks the synthetic one in {_of_hundred(area.value)} pairs "
        f"(50 would be guessing){': the images do not pass for real ones' if passes_not else ''}."
    ]


def _of_hundred(share: float) -> str:
    return f"{100 * share:.0f} of 100"


def not_measured(report: Json) -> str:
    """What nobody has looked at yet, and which command does; empty where all was looked at."""
    missing = []
    if not report.get("audit"):
        missing.append("copies of training images (`busray audit RUN`)")
    if not report.get("study"):
        missing.append("what the images are worth for training (`busray study CONFIG`)")
    return f"Not looked at yet: {'; '.join(missing)}." if missing else ""


def short_table(report: Json, figures: Sequence[Figure]) -> Table:
    """A row for each arm and for other real images: FID, KID, the worst class, agreement."""
    compared = select(figures, extractor=INCEPTION, against=None, protocol=("synthetic-only", "real-against-real"))
    compared = [f for f in compared if f.reference != CLEAN_TEST]
    overall, rows = select(compared, class_name=CLASS_ALL), []
    judged = select(figures, metric=CONSISTENCY)
    by, of_classes = (CONSISTENCY, judged) if judged else ("fid", compared)
    for arm in distinct(select(overall, floor=False), "arm"):
        agreement = first(judged, arm=arm, class_name=CLASS_ALL)
        worst = worst_class(of_classes, by, arm)
        weakest = f"{worst.class_name} {METRICS[by].number(worst.value)}" if worst else NONE
        name = f"{arm} (this corpus)" if arm == drawn_arm(report) else arm
        of_arm = select(overall, arm=arm, floor=False)
        rows.append([name, *_distances(of_arm), weakest, _number_of(agreement)])
    floors = select(overall, floor=True)
    if rows and floors:
        judge = first(figures, metric=JUDGE, class_name=CLASS_ALL, arm=REAL)
        rows.append([OTHER_REAL, *_distances(floors), NONE, _number_of(judge)])
    columns = ["arm", "FID", METRICS["kid"].title, f"worst class by {METRICS[by].name}", METRICS[CONSISTENCY].name]
    return Table(columns, rows)


def _distances(figures: Sequence[Figure]) -> list[str]:
    return [_number_of(first(figures, metric=metric)) for metric in ("fid", "kid")]


def _number_of(figure: Figure | None) -> str:
    return METRICS[figure.metric].number(figure.value) if figure else NONE
