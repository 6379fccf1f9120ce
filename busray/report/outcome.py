"""What a run came to, for somebody who has ten seconds: a verdict of at most five lines, and one
table that fits 80 columns. The report has the rest."""

from collections.abc import Mapping, Sequence
from typing import Any

from busray.evidence.classes import CONSISTENCY, FIRST_DRAW, JUDGE
from busray.records import CLASS_ALL, REAL, SEPARABILITY_AUC, Arm, Figure
from busray.report.metrics import DISTANCES, KERNEL, METRICS, NONE, excludes_zero
from busray.report.tables import Table, distinct, first, select, without_clean, worst_class
from busray.report.warnings import Warned

LINE = 80
"""Characters of a line of the verdict, where names of classes and arms allow it."""


def verdict_lines(
    figures: Sequence[Figure], warned: Sequence[Warned], corpus: Mapping[str, Any], released: str, url: str
) -> list[str]:
    """What was made, which arm is nearest, the worst class, whether to use it, where the report is.

    corpus: of report.json. released: the arm that the corpus is, after any class gate.
    """
    about = [_made(corpus, released), _nearest(figures), _worst_class(figures, released)]
    lines = [*about, _use(warned), _report(warned, url)]
    return [line for line in lines if line]


def _made(corpus: Mapping[str, Any], released: str) -> str:
    named = ", ".join(f"{count:,} {name}" for name, count in corpus["classes"].items())
    lost = f"; {corpus['quarantined']:,} quarantined" if corpus["quarantined"] else ""
    line = ""
    for classes in (named, f"{len(corpus['classes'])} classes"):
        line = f"Made: {corpus['committed']:,} images ({classes}), by {released}{lost}."
        if len(line) <= LINE:
            break
    return line


def _nearest(figures: Sequence[Figure]) -> str:
    """The arm nearest to the test images by KID, and whether chance can explain that."""
    protocols = ("synthetic-only", "real-against-real")
    tested = select(figures, reference="test", protocol=protocols, class_name=CLASS_ALL)
    arms = sorted(select(tested, metric="kid", floor=False), key=lambda f: f.value)
    if not arms:
        references = ", ".join(distinct(select(figures, metric="kid", floor=False), "reference"))
        known = f"; figures are against {references} images" if references else ""
        return f"Nearest arm: not known, it takes KID against test images{known}."
    best, others = arms[0].arm, [f.arm for f in arms[1:]]
    alike = " and ".join(_not_distinguishable(tested, best, others))
    return f"Nearest by KID: {best}" + (f"; not distinguishable from it: {alike}." if alike else ".")


def _not_distinguishable(figures: Sequence[Figure], best: str, others: Sequence[str]) -> list[str]:
    """Those of the other arms whose seed-paired difference in KID with the best one may be 0."""
    alike = []
    for other in others:
        for f in select(figures, metric="kid_difference"):
            if {f.arm, f.against} == {best, other} and f.interval and not excludes_zero(f):
                alike.append(other)
    return alike


def _worst_class(figures: Sequence[Figure], released: str) -> str:
    """By the judge; without one by KID."""
    parsed = Arm.parse(released)
    drawn = Arm(parsed.method, parsed.refined).name  # the judge looks at first draws
    worst = worst_class(select(figures, protocol=FIRST_DRAW), CONSISTENCY, drawn)
    if worst is not None:
        judge = first(figures, metric=JUDGE, class_name=worst.class_name, arm=REAL)
        real = f" (real ones: {judge.value:.0%})" if judge else ""
        return f"Worst class: {worst.class_name}; recognised in {worst.value:.0%} of its images{real}."
    by_kid = worst_class(select(figures, reference="test", protocol="synthetic-only"), "kid", drawn)
    if by_kid is None:
        return ""
    return f"Worst class: {by_kid.class_name} (KID x 1000: {METRICS['kid'].number(by_kid.value)})."


def _use(warned: Sequence[Warned]) -> str:
    return f"Use: {warned[0].short}" if warned else "Use: nothing measured here speaks against it."


def _report(warned: Sequence[Warned], url: str) -> str:
    counted = f" ({len(warned)} warning{'s' if len(warned) > 1 else ''} in it)" if warned else ""
    return f"Report: {url}/report.html{counted}"


def outcome_table(figures: Sequence[Figure], released: str, width: int) -> Table:
    """A row an arm over all classes, real images first; as many measures as the width allows.

    FID and KID come first, then the share whose class is seen, AUC, and other distances.
    """
    whole, _ = without_clean(figures)
    overall = select(whole, class_name=CLASS_ALL, protocol=("synthetic-only", "real-against-real"))
    measured = select(overall, metric=DISTANCES)
    floors_first = sorted(measured, key=lambda f: not f.floor)
    arms = distinct(floors_first, "arm")
    heads = ["arm", "n"]
    rows = [[_arm_name(arm, released), str(select(measured, arm=arm)[0].n)] for arm in arms]
    for title, cells in _columns(whole, measured, arms):
        wider = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
        if _width([[*heads, title], *wider]) <= width:
            heads, rows = [*heads, title], wider
    return Table(heads, rows)


def _arm_name(arm: str, released: str) -> str:
    if arm == released:
        return f"{arm} *"
    return "real images" if arm == REAL else arm


def _columns(figures: Sequence[Figure], measured: Sequence[Figure], arms: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(heading, a cell for each arm), the most wanted first."""
    columns: dict[str, list[str]] = {}
    for metric in DISTANCES:
        of_metric = select(measured, metric=metric)
        # one extractor a column: the first that has it
        of_metric = select(of_metric, extractor=of_metric[0].extractor) if of_metric else []
        if of_metric:
            title = METRICS[metric].heading if metric in KERNEL else METRICS[metric].title
            columns[title] = [_cell(first(of_metric, arm=arm)) for arm in arms]
    shown = list(columns.items())
    agreement = select(figures, metric=CONSISTENCY, class_name=CLASS_ALL)
    if agreement:
        judge = first(figures, metric=JUDGE, class_name=CLASS_ALL)
        cells = [first(agreement, arm=arm) if arm != REAL else judge for arm in arms]
        texts = [METRICS[CONSISTENCY].number(f.value) if f else NONE for f in cells]
        shown.insert(min(2, len(shown)), ("class seen", texts))
    wanted = [METRICS["fid"].title, METRICS["kid"].heading, "class seen", METRICS[SEPARABILITY_AUC].title]
    return sorted(shown, key=lambda column: wanted.index(column[0]) if column[0] in wanted else len(wanted))


def _cell(figure: Figure | None) -> str:
    """With its interval where it has a real one: FID's spread is no interval."""
    if figure is None:
        return NONE
    metric = METRICS[figure.metric]
    return metric.text(figure) if figure.metric in KERNEL else metric.number(figure.value)


def _width(rows: Sequence[Sequence[str]]) -> int:
    """Of a table whose columns have two spaces between them."""
    widest = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return sum(widest) + 2 * (len(widest) - 1)
