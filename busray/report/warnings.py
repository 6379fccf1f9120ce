"""What a reader must know before the corpus is used: warnings, with what to try next.

Pure: figures in, warnings out. The limit of each rule is a constant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from busray.evidence.classes import CONSISTENCY, EXCESS, FIRST_DRAW, JUDGE, SEEN_AS
from busray.records import CLASS_ALL, INCEPTION, REAL, SEPARABILITY_AUC, Arm, Figure
from busray.report.metrics import METRICS, excludes_zero
from busray.report.tables import distinct, first, select

FELL = 0.1
"""An adapted class that is seen as itself less often than the base's, by more than this share."""

USELESS_JUDGE = 0.5
"""A judge that recognises fewer of the real test images of a class says little of drawn ones."""

FEW_OF_VARIETY = 0.5
"""An arm that reaches less than this part of the recall of other real images has little variety."""

SEPARABLE = 0.9
"""Above this AUC, by the lower end of its interval, nearly every image is recognised."""


@dataclass(frozen=True)
class Warned:
    """One thing to know first."""

    text: str
    advice: str
    """What to try, or to do instead."""
    short: str = ""
    """What follows `Use:` in the verdict on a terminal, in at most 60 characters or so."""


def warnings(figures: Sequence[Figure], arm: str) -> list[Warned]:
    """The warnings on a corpus, the worst first. arm: the released one, before any class gate."""
    tested = select(figures, reference="test")
    return [*_classes(tested, arm), *_steps(tested, arm), *_variety(tested, arm), *_separable(tested, arm)]


SIMULATED = Warned(
    "No scan of a patient is in this run: simulated images (phantoms) stand in for real ones.",
    "Read its figures as a test of the method. Measure your own images with `busray run CONFIG`.",
    "none; it is a test of the method on simulated images.",
)


def not_nearer(adapters: Mapping[str, Any]) -> list[Warned]:
    """A warning where a training did not come nearer to the val images than its base.

    adapters: what their record says; an older one, or one of adapters.path, measured nothing.
    """
    distances = adapters.get("distance") or []
    of_base = [distance for step, distance in distances if step == 0]
    trained = [(distance, step) for step, distance in distances if step]
    if not of_base or not trained:
        return []
    nearest, step = min(trained)
    if nearest < of_base[0]:
        return []
    text = (
        "Training brought drawn images no nearer to the val images: a quick KID x 1000 on "
        f"{adapters.get('distance_features')} features is {1000 * nearest:.3g} at its best (step {step}), and "
        f"{1000 * of_base[0]:.3g} before training."
    )
    advice = f"{LOWER_RATES}. The images of each validation are in finetune/grids."
    if len(trained) == 1:
        advice = f"{LOWER_RATES}, and adapters.validate_every below adapters.steps: the best is kept."
    return [Warned(text, advice, "the base alone: training came no nearer to the images.")]


LOWER_RATES = (
    "Draw with the base alone (arm base), or try a lower adapters.learning_rate and adapters.token_learning_rate"
)


def _classes(figures: Sequence[Figure], arm: str) -> list[Warned]:
    """Classes taken for another one first, then those that are weak or became worse."""
    collapsed: list[Warned] = []
    others: list[Warned] = []
    drawn = select(figures, protocol=FIRST_DRAW, arm=arm)
    for agreement in select(drawn, metric=CONSISTENCY):
        name = agreement.class_name
        judge = first(figures, metric=JUDGE, class_name=name, arm=REAL)
        if name == CLASS_ALL or judge is None:
            continue
        if judge.value < USELESS_JUDGE:
            others.append(_judge_is_weak(judge))
            continue
        before = first(figures, protocol=FIRST_DRAW, metric=CONSISTENCY, class_name=name, arm="base")
        fell = ""
        if before and arm != before.arm and before.value - agreement.value > FELL:
            fell = f" Adaptation made it worse: of the base's images it was {before.value:.2f}."
        most = _most_seen(drawn, name)
        if most.metric != SEEN_AS + name:
            collapsed.append(_collapsed(agreement, most, judge, fell))
            continue
        less = first(drawn, metric=EXCESS, class_name=name)
        if fell or (less and less.value < 0 and excludes_zero(less)):
            others.append(_weak(agreement, judge, fell))
    return collapsed + others


def _most_seen(drawn: Sequence[Figure], name: str) -> Figure:
    """The class that the judge sees most often in images of this class."""
    seen = [f for f in select(drawn, class_name=name) if f.metric.startswith(SEEN_AS)]
    return max(seen, key=lambda f: f.value)


def collapsed_classes(figures: Sequence[Figure], arm: str) -> list[str]:
    """The arm's classes that a judge that is of use takes for another class in most images."""
    tested = select(figures, reference="test")
    drawn = select(tested, protocol=FIRST_DRAW, arm=arm)
    collapsed = []
    for name in distinct(select(drawn, metric=CONSISTENCY), "class_name"):
        judge = first(tested, metric=JUDGE, class_name=name, arm=REAL)
        is_known = name != CLASS_ALL and judge is not None and judge.value >= USELESS_JUDGE
        if is_known and _most_seen(drawn, name).metric != SEEN_AS + name:
            collapsed.append(name)
    return collapsed


RETRY_CLASS = (
    "Try prompts and captions that say how the class looks, more adapters.steps, or "
    "--corpus.gate.attempts=8, which draws rejected images again."
)


def _collapsed(agreement: Figure, most: Figure, judge: Figure, fell: str) -> Warned:
    name, other = agreement.class_name, most.metric.removeprefix(SEEN_AS)
    return Warned(
        f"Do not train on the '{name}' images: the judge takes most of them for '{other}' "
        f"({most.value:.2f} of {most.n}). It sees '{name}' in {METRICS[CONSISTENCY].text(agreement)} of "
        f"them, and in {METRICS[JUDGE].text(judge)} of real '{name}' images.{fell}",
        RETRY_CLASS,
        f"not the '{name}' images; a classifier takes most of them for '{other}'.",
    )


def _weak(agreement: Figure, judge: Figure, fell: str) -> Warned:
    name = agreement.class_name
    return Warned(
        f"Fewer '{name}' images show their class than real ones: the judge sees '{name}' in "
        f"{METRICS[CONSISTENCY].text(agreement)} of them, and in {METRICS[JUDGE].text(judge)} of real "
        f"'{name}' images.{fell}",
        RETRY_CLASS,
        f"with care; fewer '{name}' images than real ones show their class.",
    )


def _judge_is_weak(judge: Figure) -> Warned:
    name = judge.class_name
    return Warned(
        f"Whether '{name}' images show their class is not known: the judge recognises only "
        f"{METRICS[JUDGE].text(judge)} of real '{name}' test images.",
        "Look at the images yourself, or choose another judge (evaluate.judge).",
        f"look first; whether '{name}' images show their class is not known.",
    )


RETRY_ADAPTATION = (
    "Try more real images, other adapters.steps or adapters.learning_rate, and choose on val images "
    "(--evaluate.reference=val)."
)
WITHOUT_REFINEMENT = "Leave it out (no `refine` in the config), or try another refine.strength on val images."


def _steps(figures: Sequence[Figure], arm: str) -> list[Warned]:
    """Adaptation or refinement that does not bring the images nearer to the real ones, by KID."""
    released = Arm.parse(arm)
    adapted = replace(released, refined=False).name
    steps = [("Adaptation", adapted, "base", RETRY_ADAPTATION)]
    if released.refined:
        steps.append(("Refinement", arm, adapted, WITHOUT_REFINEMENT))
    found = []
    overall = select(figures, metric="kid_difference", class_name=CLASS_ALL, extractor=INCEPTION)
    for step, after, before, advice in steps:
        difference = first(overall, arm=after, against=before)
        if difference is None or difference.interval is None:
            continue
        measured = f"KID x 1000, {after} minus {before}: {METRICS['kid'].text(difference, '+')}"
        if not excludes_zero(difference):
            text = f"{step} is not shown to help: its effect cannot be distinguished from none ({measured})."
            found.append(Warned(text, advice, f"with care; {step.lower()} is not shown to help."))
        elif difference.value > 0:
            text = f"{step} made the images less like real ones ({measured})."
            found.append(Warned(text, advice, f"with care; {step.lower()} made them less like real ones."))
    return found


def _variety(figures: Sequence[Figure], arm: str) -> list[Warned]:
    recall = first(figures, metric="recall", class_name=CLASS_ALL, extractor=INCEPTION, arm=arm, floor=False)
    floor = first(figures, metric="recall", class_name=CLASS_ALL, extractor=INCEPTION, floor=True)
    if recall is None or floor is None or recall.value >= FEW_OF_VARIETY * floor.value:
        return []
    return [
        Warned(
            "The images vary less than real ones: they reach "
            f"{METRICS['recall'].number(recall.value)} of the real images' variety, other real images "
            f"{METRICS['recall'].number(floor.value)} (recall, n = {recall.n}).",
            "Try more and more different prompts, or a lower sampling.guidance_scale.",
            "with care; the images vary less than real ones.",
        )
    ]


def _separable(figures: Sequence[Figure], arm: str) -> list[Warned]:
    area = first(figures, metric=SEPARABILITY_AUC, class_name=CLASS_ALL, extractor=INCEPTION, arm=arm, floor=False)
    if area is None or area.interval is None or area.interval.low <= SEPARABLE:
        return []
    return [
        Warned(
            "A linear classifier recognises nearly every image as synthetic "
            f"(AUC {METRICS[SEPARABILITY_AUC].text(area)}; 0.5 is guessing).",
            "Do not use the images where they must pass for real ones. `busray study` measures what "
            "they are worth for training.",
            "for training only; nearly every image is recognised as synthetic.",
        )
    ]
