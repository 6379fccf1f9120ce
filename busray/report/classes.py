"""Class consistency and the class gate in words, tables and their section of the report."""

from collections.abc import Sequence
from html import escape as _e

from busray.evidence.classes import AFTER_GATE, CONSISTENCY, EXCESS, FIRST_DRAW, JUDGE, SEEN_AS
from busray.evidence.nearness import DISTANCE
from busray.records import CLASS_ALL, REAL, Figure
from busray.report.html import svg, table, text
from busray.report.tables import NONE, Json


def consistency_sentences(figures: Sequence[Figure]) -> list[str]:
    """Agreement of each arm's first draws beside what the judge reaches on real images; where diversity was lost."""
    first = {(f.metric, f.arm, f.class_name): f for f in figures if f.protocol == FIRST_DRAW}
    arms = [arm for metric, arm, name in first if metric == CONSISTENCY and name == CLASS_ALL]
    own = next((f for f in figures if f.metric == JUDGE and f.class_name == CLASS_ALL), None)
    if own is None or not arms:
        return []
    told = ", ".join(f"{arm} {_plain(first[CONSISTENCY, arm, CLASS_ALL])}" for arm in arms)
    sentences = [
        f"Class consistency of first draws, by a {own.extractor} that gets {_plain(own)} of real test images right "
        f"(mean over classes): {told}."
    ]
    lost = [f for (metric, _, _), f in first.items() if metric == EXCESS and f.value > 0]
    if lost:
        named = ", ".join(
            f"{f.arm} {f.class_name} {f.value:+.2f}{'' if _sure(f) else ' (may be chance)'}" for f in lost
        )
        sentences.append(f"More agreement than on real images, so lost diversity: {named}.")
    return sentences


def consistency_rows(figures: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): agreement of each arm and class, the judge on real images, and whether diversity was lost."""
    own = {f["class"]: f for f in figures if f["metric"] == JUDGE}
    excess = {(f["arm"], f["protocol"], f["class"]): f for f in figures if f["metric"] == EXCESS}
    rows = []
    for f in (f for f in figures if f["metric"] == CONSISTENCY):
        more = excess[f["arm"], f["protocol"], f["class"]]
        lost = "no" if more["value"] <= 0 else "yes" if more["interval"][0] > 0 else "perhaps"
        if f["protocol"] == AFTER_GATE:
            lost = NONE  # selected to agree: more agreement says nothing of the model
        cells = (_cell(f), _cell(own[f["class"]]), _cell(more, "+"), lost)
        rows.append([f["arm"], f["protocol"], f["class"], str(f["n"]), *cells])
    columns = ["arm", "protocol", "class", "n", "agreement [95 % interval]", "judge on real test images", "difference"]
    return [*columns, "lost diversity"], rows


def confusions(figures: Sequence[Json]) -> str:
    """What the judge sees, drawn: a matrix of real test images and one of each arm's first draws. Empty where figures
    have no SEEN_AS, as those of before it was told."""
    mine = [f for f in figures if f["metric"].startswith(SEEN_AS)]
    arms = dict.fromkeys(f["arm"] for f in mine)
    matrices = "".join(_confusion(arm, [f for f in mine if f["arm"] == arm]) for arm in arms)
    said = (
        "<p>Rows: the class that real images are of, or that was asked for; columns: the class that the judge sees. In "
        "a cell: images, and their share of the row.</p>"
    )
    return f'{said}<div class="columns">{matrices}</div>' if matrices else ""


def _confusion(arm: str, figures: Sequence[Json]) -> str:
    """A matrix: a cell's count, its share of the row, and that share as shade; frames mark agreement."""
    rows, columns = (
        list(dict.fromkeys(names))
        for names in ((f["class"] for f in figures), (f["metric"].removeprefix(SEEN_AS) for f in figures))
    )
    left, height = 24 + 6.6 * min(max(map(len, rows)), 16), 40
    width = (400 - left) / len(columns)
    drawn = text(0, 12, "true class" if arm == REAL else "asked for", "soft") + text(400, 12, "seen as", "soft", "end")
    for i, name in enumerate(columns):
        drawn += text(left + (i + 0.5) * width, 30, _short(name, int(width / 7)), "head", "middle")
    for f in figures:
        i, j = rows.index(f["class"]), columns.index(f["metric"].removeprefix(SEEN_AS))
        x, y = left + j * width, 36 + i * height
        box = f'x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" height="{height - 2:.1f}"'
        frame = "currentColor" if rows[i] == columns[j] else "none"
        drawn += f'<g class="c1"><rect {box} fill="currentColor" fill-opacity="{0.06 + 0.44 * f["value"]:.2f}" '
        drawn += f'stroke="{frame}"/></g>'
        drawn += text(x + width / 2, y + 18, f"{round(f['value'] * f['n']):,}", "head", "middle")
        drawn += text(x + width / 2, y + 33, f"{f['value']:.2f}", anchor="middle")
    for i, name in enumerate(rows):
        drawn += text(left - 8, 36 + i * height + 24, _short(name, 16), "head", "end")
    title = "Real test images" if arm == REAL else f"First draws of {arm}"
    n = {f["class"]: f["n"] for f in figures}
    parts = ", ".join(f"{name} {count:,}" for name, count in n.items())
    legend = f"n = {sum(n.values()):,} ({parts}), seen by {figures[0]['extractor']}."
    drawing = svg(400, 40 + height * len(rows), f"Classes that the judge sees: {title}", drawn)
    return f"<figure><h3>{_e(title)}</h3>{drawing}<figcaption>{_e(legend)}</figcaption></figure>"


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: max(most - 1, 1)]}…"


def consistency_section(figures: Sequence[Json], gate: Json | None) -> str:
    """The report's part: class consistency, and the class gate where there is one."""
    rows = consistency_rows(figures)
    if not rows[1] and not gate:
        return ""
    own = next((f for f in figures if f["metric"] == JUDGE and f["class"] == CLASS_ALL), None)
    parts = ["<section><h2>Class consistency</h2>"]
    if own:
        parts.append(
            f"<p>The judge is a classifier ({_e(own['extractor'])}) trained on {own['n']} real training images, "
            f"calibrated on validation images and tested on {own['n_reference']} real test images. Agreement is the "
            "share of first draws that it takes for their class, before any rejection. It errs on real images; where "
            "it errs less on drawn ones, these are easier than real ones: lost diversity (perhaps: the interval "
            "contains 0; –: after a gate, which selects images to agree). Overall, the classes count alike.</p>"
            f"{table(*rows)}{confusions(figures)}"
        )
    return "".join([*parts, _gate(gate, figures) if gate else "", "</section>"])


def _gate(gate: Json, figures: Sequence[Json]) -> str:
    images, right = gate["images"], ", ".join(f"{name} {_cell(found)}" for name, found in gate["test"].items())
    return (
        f"<h3>Class gate</h3><p>A classifier ({_e(gate['architecture'])}) trained on {images['train']} real training "
        f"images and calibrated on {images['val']} validation images; of {images['test']} real test images it gets "
        f"right: {_e(right)}. An image passes whose class it gives a probability of "
        f"{gate['threshold']:g} or more; else it is drawn again, {gate['attempts']} draws in all at most.</p>"
        f"{table(*gate_rows(gate))}<p>Distances and coverage before and after it are with those of the other arms, the "
        "latter as +gate; where a budget was spent they are of fewer images, which FID depends on and KID does not. "
        f"Copying: how near the nearest real training image is.</p>{table(*copying_rows(figures))}"
    )


def gate_rows(gate: Json) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of what the class gate did with each class."""
    columns = {
        "planned": "planned",
        "first": "first draw passed",
        "redrawn": "later draw passed",
        "spent": "budget spent",
        "undrawn": "not drawn",
        "draws": "draws",
    }
    rows = [[name, *(str(counts.get(c, NONE)) for c in columns)] for name, counts in gate["classes"].items()]
    return ["class", *columns.values()], rows


def copying_rows(figures: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the nearness to training images, before and after the gate and of held-out real images."""
    rows = []
    for f in (f for f in figures if f["metric"].removesuffix("_floor") == DISTANCE and f["class"] == CLASS_ALL):
        low, high = f["interval"] or (None, None)
        interval = NONE if low is None else f"[{low:.2f}, {high:.2f}]"
        rows.append([f["extractor"], f["arm"], str(f["n"]), f"{f['value']:.2f}", interval])
    return ["extractor", "arm", "n", "nearest training image, median", "95 % interval"], rows


def _plain(figure: Figure) -> str:
    assert figure.interval is not None
    return f"{figure.value:.2f} [{figure.interval[0]:.2f}, {figure.interval[1]:.2f}]"


def _sure(figure: Figure) -> bool:
    return figure.interval is not None and figure.interval[0] > 0


def _cell(figure: Json, sign: str = "") -> str:
    low, high = figure["interval"]
    return f"{figure['value']:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"
