"""Do drawn images show their class? What a classifier of real images says of first draws, and what the class gate did.

Agreement is counted before any rejection, by a judge that rejects nothing and has another architecture than the gate.
It stands beside the judge's own accuracy on real test images: a judge that errs on real images should err as often on
images as varied as these, so agreement above that means that diversity was lost. Pure: records and numbers in, records
and text out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape as _e
from typing import Any

import numpy as np

from busray.quality.ablation import DISTANCE
from busray.quality.figures import REAL, Features, Real
from busray.quality.kernel import Estimate
from busray.quality.page import svg, table, text
from busray.quality.readers import wilson
from busray.quality.tables import NONE, Json
from busray.records import CLASS_ALL, Commit, Figure

CONSISTENCY, EXCESS = "class_consistency", "class_consistency_excess"
"""Share of drawn images that the judge takes for their class; that less JUDGE."""
JUDGE, GATE = "judge_accuracy", "gate_accuracy"
"""Share of the real test images that the judge, or the gate, takes for their class. Overall, the mean over classes."""
SEEN_AS = "seen_as_"
"""And a class: share of the images of a class, real test ones (REAL) or an arm's first draws, that the judge takes for
that one. Rows of a confusion matrix, whose n is the row's images."""
ACCEPTANCE = "gate_acceptance"
"""Share of the first draws that the gate saw which it let pass."""
FIRST_DRAW, AFTER_GATE = "first-draw", "after-gate"
"""Protocols of CONSISTENCY: as drawn; among the images that a gate let pass, which says little, being chosen so."""


# ---- shares and their intervals -------------------------------------------------------------------------------------


def recalls(
    probabilities: np.ndarray, labels: np.ndarray, units: np.ndarray, names: Sequence[str]
) -> dict[str, Estimate]:
    """Class -> share of its images that are said to be of it, for classes that have any; first the mean over these.

    probabilities [n, classes], labels [n]. Images of one of units [n] are not independent: Wilson's interval is that of
    as many images as there are units, which is wider than it need be where images of a unit are told apart.
    """
    said = probabilities.argmax(1)
    shares = {}
    for label, name in enumerate(names):
        mine = labels == label
        if mine.any():
            share, whole = float((said[mine] == label).mean()), len(np.unique(units[mine]))
            shares[name] = Estimate(share, wilson(share * whole, whole))
    return {CLASS_ALL: mean(list(shares.values())), **shares}


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of independent estimates, its interval recovered from theirs (MOVER: Zou and Donner 2008, doi
    10.1002/sim.3095)."""
    value, k = sum(e.value for e in estimates) / len(estimates), len(estimates)
    below, above = (sum((e.value - e.interval[side]) ** 2 for e in estimates) ** 0.5 / k for side in (0, 1))
    return Estimate(value, (value - below, value + above))


def difference(one: Estimate, other: Estimate) -> Estimate:
    """One less the other, independent of it; interval as of mean, which for two shares is Newcombe's (1998, method 10,
    doi 10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I)."""
    value = one.value - other.value
    below = ((one.value - one.interval[0]) ** 2 + (other.interval[1] - other.value) ** 2) ** 0.5
    above = ((one.interval[1] - one.value) ** 2 + (other.value - other.interval[0]) ** 2) ** 0.5
    return Estimate(value, (value - below, value + above))


# ---- figures --------------------------------------------------------------------------------------------------------


def consistency_figures(arms: Mapping[str, Features], real: Real, names: Sequence[str], protocol: str) -> list[Figure]:
    """CONSISTENCY and EXCESS of each arm overall and a class; for FIRST_DRAW also JUDGE and what SEEN_AS says.

    arms, real: the judge's probabilities [n, classes] as features, columns in the order of names. real.extractor: the
    judge's architecture. Overall the classes count alike, in arms and real images.
    """
    held_out = real.split("test")
    labels = np.concatenate([np.full(len(rows.units), names.index(name)) for name, rows in held_out.items()])
    seen = np.concatenate([rows.features for rows in held_out.values()])
    accuracy = recalls(seen, labels, np.concatenate([rows.units for rows in held_out.values()]), names)
    counts = {CLASS_ALL: len(labels), **{name: len(rows.units) for name, rows in held_out.items()}}

    def figure(metric: str, found: Estimate, n: int, name: str, arm: str, of: str) -> Figure:
        common = (n, counts[name], "test", of, real.extractor, name, arm, real.frame, real.size)
        return Figure(metric, found.value, found.interval, *common)

    trained_on = sum(len(rows) for rows in real.features["train"].values())
    figures = []
    if protocol == FIRST_DRAW:
        figures += [figure(JUDGE, found, trained_on, name, REAL, "single-split") for name, found in accuracy.items()]
        figures += _seen(real.features["test"], names, REAL, "single-split", real)
    for arm, by_class in arms.items():
        drawn = {name: rows for name, rows in by_class.items() if name in held_out}
        if protocol == FIRST_DRAW:
            figures += _seen(drawn, names, arm, protocol, real)
        labels = np.concatenate([np.full(len(rows), names.index(name)) for name, rows in drawn.items()])
        agreement = recalls(np.concatenate(list(drawn.values())), labels, np.arange(len(labels)), names)
        for name, found in agreement.items():
            beside = mean([accuracy[c] for c in drawn]) if name == CLASS_ALL else accuracy[name]
            n = len(labels) if name == CLASS_ALL else len(drawn[name])
            figures.append(figure(CONSISTENCY, found, n, name, arm, protocol))
            figures.append(figure(EXCESS, difference(found, beside), n, name, arm, protocol))
    return figures


def _seen(images: Features, names: Sequence[str], arm: str, protocol: str, real: Real) -> list[Figure]:
    """SEEN_AS of each class of images and each of names; without interval, which of the agreement CONSISTENCY has."""
    figures = []
    for name, rows in images.items():
        common = (len(rows), len(real.features["test"][name]), "test", protocol, real.extractor, name, arm)
        for label, other in enumerate(names):
            share = float((rows.argmax(1) == label).mean())
            figures.append(Figure(f"{SEEN_AS}{other}", share, None, *common, real.frame, real.size))
    return figures


@dataclass(frozen=True)
class GateCounts:
    """What the class gate did with the images of a class."""

    planned: int
    first: int
    """First draws that it let pass."""
    redrawn: int
    """Images that it let pass later."""
    spent: int
    """Images whose draws were all rejected, or whose redraw could not be drawn: quarantined."""
    draws: int
    undrawn: int = 0
    """Images that could not be drawn or encoded: quarantined without a word of the gate."""


def gate_counts(commits: Sequence[Commit], attempts: int) -> dict[str, GateCounts]:
    """By class, from the records of a corpus whose gate allows so many draws an image."""
    counts: dict[str, GateCounts] = {}
    for name in sorted({commit.class_name for commit in commits}):
        mine = [commit for commit in commits if commit.class_name == name]
        again = [one for commit in mine for one in commit.redrawn]
        planned, kept = sum(commit.count for commit in mine), sum(one.kept is not None for one in again)
        further = sum(min(len(one.rejected), attempts - 1) for one in again)
        judged = {one.image_id for one in again}
        undrawn = sum(image_id not in judged for commit in mine for image_id, _ in commit.rejects)
        first = planned - undrawn - len(again)
        counts[name] = GateCounts(planned, first, kept, len(again) - kept, planned + further, undrawn)
    return counts


def gate_figures(
    counts: Mapping[str, GateCounts], record: Mapping[str, Any], arm: str, frame: str, size: int
) -> list[Figure]:
    """ACCEPTANCE a class, and the mean over them; the gate's own accuracy on real test images, from its record."""
    tested, about = record["images"]["test"], (record["architecture"],)
    seen = {name: c.planned - c.undrawn for name, c in counts.items() if c.planned > c.undrawn}
    passed = {name: Estimate(counts[name].first / n, wilson(counts[name].first, n)) for name, n in seen.items()}
    shown = {CLASS_ALL: mean(list(passed.values())), **passed} if passed else {}
    figures = []
    for name, found in shown.items():
        n = sum(seen.values()) if name == CLASS_ALL else seen[name]
        common = (n, tested, "test", FIRST_DRAW, *about, name, arm, frame, size)
        figures.append(Figure(ACCEPTANCE, found.value, found.interval, *common))
    for name, found in record["test"].items():
        low, high = found["interval"]
        common = (record["images"]["train"], found["n"], "test", "single-split", *about, name, REAL, frame, size)
        figures.append(Figure(GATE, found["value"], (low, high), *common))
    return figures


# ---- in words and tables --------------------------------------------------------------------------------------------


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
