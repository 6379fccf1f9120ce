"""An ablation's evidence beyond arm_figures: nearness to the training images, sweep curves, sentences, its page.

Pure: features and records in, records and text out. Here copying and class drift are told from the nearest training
image in feature space only; a test that judges images adds figures of its own to those of nearness_figures.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape

from busray.evidence.nearness import DISTANCE, RECONSTRUCTION, SAME_CLASS, VAE
from busray.records import CLASS_ALL, INCEPTION, REAL, Figure
from busray.report.html import scale, svg, table, text, ticks
from busray.report.page import report_html
from busray.report.tables import METRICS, NONE, Json, printed


def sentences(arms: Sequence[Figure], sweep: Sequence[Figure], full: str, sweep_reference: str) -> list[str]:
    """What the arms' order does not say: FID from base to `full` where it is a verdict, against test images; what the
    autoencoder costs; what the sweeps found."""
    overall = [f for f in arms if f.class_name == CLASS_ALL]
    said = [_from_base(*pair) + "." for pair in _steps(arms, full) if pair[1].reference == "test"]
    floor = next((f for f in overall if f.metric == "fid_floor"), None)
    for f in overall:
        if (f.metric, f.protocol) == ("fid", RECONSTRUCTION):
            beside = f"; such images as they are {floor.value:.1f}" if floor and f.arm != VAE else ""
            said.append(f"The autoencoder alone, {f.arm}: FID {f.value:.1f} (n {f.n} against {_real(f)}){beside}.")
    tried = {f.arm: f for f in sweep if (f.metric, f.class_name) == ("kid", CLASS_ALL)}
    near = {
        f.arm: f.value
        for f in sweep
        if (f.metric.removesuffix("_floor"), f.class_name, f.extractor) == (DISTANCE, CLASS_ALL, INCEPTION)
    }
    if tried:
        best = min(tried.values(), key=lambda f: f.value)
        said.append(
            f"Of the {len(tried)} settings of the sweeps, {best.arm} has the lowest KID x 1000 against "
            f"{sweep_reference} images, {1000 * best.value:.2f}; its images lie {near[best.arm]:.2f} (median) from the "
            f"nearest training image, real {sweep_reference} images {near[f'{REAL} {sweep_reference}']:.2f}."
        )
    return said


def notes(arms: Sequence[Figure], full: str) -> list[str]:
    """FID from base to `full` where it is no verdict: in the mixture with real images, and against others than test."""
    said = []
    for before, after in _steps(arms, full):
        if after.protocol == "paper-mixture":
            said.append(f"{_from_base(before, after)}. No verdict: the real images stand on both sides.")
        elif after.reference != "test":
            said.append(f"{_from_base(before, after)}. No verdict: only test images carry one.")
    return said


def _steps(arms: Sequence[Figure], full: str) -> list[tuple[Figure, Figure]]:
    """(FID of base, FID of `full`) overall by each protocol that has both, the mixture last."""
    pairs = []
    for protocol in ("synthetic-only", "paper-mixture"):
        found = {f.arm: f for f in arms if (f.metric, f.class_name, f.protocol) == ("fid", CLASS_ALL, protocol)}
        if "base" in found and full in found:
            pairs.append((found["base"], found[full]))
    return pairs


def _from_base(before: Figure, after: Figure) -> str:
    change = 100 * (after.value / before.value - 1)
    return (
        f"FID from base to {after.arm}, {after.protocol}, against {_real(after)} (n {after.n}): {before.value:.1f} to "
        f"{after.value:.1f}, {change:+.0f} %"
    )


def _real(figure: Figure) -> str:
    """How many real images a figure is against, and which."""
    return f"{figure.n_reference} {'real' if figure.reference == 'all' else figure.reference} images"


def compared(report: Json) -> list[Json]:
    """The figures of the arms' tables: without those of sweeps."""
    ablation = report["ablation"]
    elsewhere = {ablation["sweep_reference"]} - {ablation["reference"]}
    return [
        f
        for f in report["figures"]
        if f["reference"] not in elsewhere and not set(f["arm"].split(" - ")) & set(ablation["sweep_only"])
    ]


def sweep_rows(
    figures: Sequence[Json], curves: Mapping[str, Mapping[str, Sequence[tuple[float, str]]]], reference: str
) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): a row for each point of each sweep, overall figures against the reference's images."""
    columns = ["sweep", "value", "arm", "n", "FID", "KID x 1000 [95 % interval]"]
    columns += ["nearest training image, median [95 % interval]", "nearest of its class [95 % interval]"]
    found = _overall(figures, reference)
    rows = []
    for axis, arms in curves.items():
        for points in arms.values():
            for value, arm in points:
                fid, kid = found["fid", arm], found["kid", arm]
                near, same = found[DISTANCE, arm], found[SAME_CLASS, arm]
                numbers = [printed("fid", fid["value"]), _with_interval(kid, 1000, 2)]
                rows.append(
                    [axis, f"{value:g}", arm, str(kid["n"]), *numbers, *(_with_interval(f, 1, 2) for f in (near, same))]
                )
    floor = [printed("fid", found["fid_floor", REAL]["value"]), _with_interval(found["kid_floor", REAL], 1000, 2)]
    floor += [f"{found[f'{metric}_floor', f'{REAL} {reference}']['value']:.2f}" for metric in (DISTANCE, SAME_CLASS)]
    rows.append([NONE, NONE, REAL, str(found["kid_floor", REAL]["n"]), *floor])
    return columns, rows


def nearness_rows(figures: Sequence[Json], arms: Sequence[str], held_out: str) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): overall DISTANCE and SAME_CLASS of the arms, and of the held-out real images."""
    found = _overall(figures, "train")
    rows = [[arm, *(_with_interval(found[metric, arm], 1, 2) for metric in (DISTANCE, SAME_CLASS))] for arm in arms]
    real = f"{REAL} {held_out}"
    rows.append([real, *(_with_interval(found[f"{metric}_floor", real], 1, 2) for metric in (DISTANCE, SAME_CLASS))])
    columns = ["arm", "nearest training image, median [95 % interval]", "nearest of its class [95 % interval]"]
    return columns, rows


def configuration_rows(configurations: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    columns = list(dict.fromkeys(key for configuration in configurations for key in configuration))
    return columns, [[_plain(configuration.get(key)) for key in columns] for configuration in configurations]


def _plain(value: object) -> str:
    return NONE if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _overall(figures: Sequence[Json], reference: str) -> dict[tuple[str, str], Json]:
    """(metric, arm) -> Inception's figure of all classes, against the reference's images; of nearness, training's."""
    return {
        (f["metric"], f["arm"]): f
        for f in figures
        if f["class"] == CLASS_ALL and f["protocol"] != "paper-mixture" and f["extractor"] == INCEPTION
        if f["reference"] == ("train" if f["metric"].removesuffix("_floor") in (DISTANCE, SAME_CLASS) else reference)
    }


def _with_interval(figure: Json, factor: float, decimals: int) -> str:
    value = f"{figure['value'] * factor:z.{decimals}f}"
    if not figure["interval"]:
        return value
    low, high = (f"{bound * factor:z.{decimals}f}" for bound in figure["interval"])
    return f"{value} [{low}, {high}]"


def ablation_html(report: Json, sheets: Mapping[str, bytes]) -> str:
    """The page: the arms as in a run's report, then the sweeps and every configuration. sheets: title -> PNG."""
    ablation, figures, arms = report["ablation"], report["figures"], compared(report)
    sections = [
        _notes(ablation),
        _sheets(sheets),
        _nearness(arms, ablation),
        _sweeps(figures, ablation),
        _configurations(ablation),
    ]
    return report_html({**report, "figures": arms}, {}, sections)


def _notes(ablation: Json) -> str:
    """Below the figures, whose tables they are about."""
    said = "".join(f'<p class="soft">{escape(note)}</p>' for note in ablation["notes"])
    return f"<section><h3>Beside the tables</h3>{said}</section>" if said else ""


def _sheets(sheets: Mapping[str, bytes]) -> str:
    figures = "".join(
        f'<h3>{escape(title)}</h3><figure><img style="max-width:100%" alt="{escape(title)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}"></figure>'
        for title, png in sheets.items()
    )
    note = "The first images of each class, not a selection. A column has one seed: its noise and prompt are the same."
    return f'<section><h2>Arms side by side</h2><p class="soft">{note}</p>{figures}</section>' if sheets else ""


NEARNESS = (
    "Distance in feature space to the nearest training image, and whether that one is of the class that was asked for. "
    "Images much nearer to training images than held-out real ones hint at copying; images whose nearest training "
    "image is of their class less often than real ones hint at class drift. Neither is a test of any one image."
)


def _nearness(figures: Sequence[Json], ablation: Json) -> str:
    rows = table(*nearness_rows(figures, ablation["arms"], ablation["held_out"]))
    return f'<section><h2>Copying and class drift</h2><p class="soft">{NEARNESS}</p>{rows}</section>'


def _sweeps(figures: Sequence[Json], ablation: Json) -> str:
    reference = ablation["sweep_reference"]
    found = _overall(figures, reference)
    plots = ""
    for axis, arms in ablation["curves"].items():
        shown = "".join(
            _curves(axis, metric, title, factor, arms, found, floor)
            for metric, title, factor, floor in (
                ("kid", METRICS["kid"][0], 1000.0, REAL),
                (DISTANCE, "Distance to the nearest training image", 1.0, f"{REAL} {reference}"),
                (SAME_CLASS, "Share whose nearest training image is of their class", 1.0, f"{REAL} {reference}"),
            )
        )
        plots += f'<h3>{escape(axis)}</h3><div class="columns">{shown}</div>'
    note = (
        f"Sweeps of {ablation['full']}, one setting at a time, against the {reference} images: settings are chosen "
        f"here, so that the {ablation['reference']} images are looked at once. Strength 0 is the image before "
        "refinement. Bars: 95 % intervals. Dashed: real images."
    )
    rows = table(*sweep_rows(figures, ablation["curves"], reference))
    return f'<section><h2>Sweeps</h2><p class="soft">{escape(note)}</p>{plots}{rows}</section>'


def _curves(
    axis: str,
    metric: str,
    title: str,
    factor: float,
    arms: Mapping[str, Sequence[tuple[float, str]]],
    found: Mapping[tuple[str, str], Json],
    floor_arm: str,
) -> str:
    """A line an arm over the values of a sweep."""
    series = {arm: [(value, found[metric, name]) for value, name in points] for arm, points in arms.items()}
    floor = found[f"{metric}_floor", floor_arm]["value"] * factor
    shown = [f for points in series.values() for _, f in points]
    heights = [factor * v for f in shown for v in (f["value"], *(f["interval"] or ()))] + [floor]
    places = [value for points in series.values() for value, _ in points]
    x, y = scale(min(places), max(places), 52, 386), scale(min(heights), max(heights), 184, 32)
    drawn = text(0, 12, title, "head") + text(216, 228, axis, "soft", "middle")
    for t in ticks(min(heights), max(heights)):
        drawn += f'<path class="rule" d="M52 {y(t):.1f}H386"/>{text(46, y(t) + 4, f"{t:g}", "soft", "end")}'
    drawn += "".join(text(x(value), 208, f"{value:g}", "soft", "middle") for value in sorted(set(places)))
    drawn += f'<path class="floor" d="M52 {y(floor):.1f}H386"/>'
    for i, points in enumerate(series.values(), 1):
        line = "L".join(f"{x(value):.1f} {y(f['value'] * factor):.1f}" for value, f in points)
        bars = "".join(
            f'<path stroke="currentColor" d="M{x(value):.1f} {y(f["interval"][0] * factor):.1f}'
            f'V{y(f["interval"][1] * factor):.1f}"/>'
            for value, f in points
            if f["interval"]
        )
        dots = "".join(
            f'<circle fill="currentColor" cx="{x(value):.1f}" cy="{y(f["value"] * factor):.1f}" r="3"/>'
            for value, f in points
        )
        drawn += (
            f'<g class="c{i}"><path fill="none" stroke="currentColor" stroke-width="1.5" d="M{line}"/>{bars}{dots}</g>'
        )
    names = "; ".join(f"{colour}: {arm}" for colour, arm in zip(("blue", "brown"), series))
    return f"<figure>{svg(400, 234, f'{title} over {axis}', drawn)}<figcaption>{escape(names)}</figcaption></figure>"


def _configurations(ablation: Json) -> str:
    rows = table(*configuration_rows(ablation["configurations"]))
    note = "Every configuration tried under this output. All share data, seeds, training steps and images a class."
    return f'<section><h2>Every configuration tried</h2><p class="soft">{note}</p>{rows}</section>'
