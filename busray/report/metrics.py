"""How each metric is named, printed and read, in sentences, on pages and on terminals."""

from collections.abc import Sequence
from dataclasses import dataclass

from busray.evidence.stats.intervals import Estimate
from busray.records import SEPARABILITY_AUC, Figure, Interval

NONE = "–"
"""A cell for which there is no figure."""


@dataclass(frozen=True)
class Metric:
    """How the values of a metric are printed, and how to read them."""

    title: str
    """Heading of its column, with the factor that its numbers are multiplied by."""
    digits: int
    factor: float = 1.0
    better: str = ""
    """`lower` or `higher`; empty where neither is better."""
    floor: str = ""
    """What its floor is measured on: the best that an arm can reach. Empty where it has none."""
    brackets: str = "95 % interval"
    """What stands in brackets after a value."""

    @property
    def name(self) -> str:
        """Without the factor: FID, KID, FD-texture."""
        return self.title.removesuffix(" x 1000")

    @property
    def heading(self) -> str:
        return f"{self.title} [{self.brackets}]"

    def number(self, value: float, sign: str = "") -> str:
        """sign: `+` to print it before positive values. A value that rounds to 0 has no minus."""
        return f"{value * self.factor:{sign}z.{self.digits}f}"

    def interval(self, ends: Sequence[float] | None, sign: str = "") -> str:
        """`[low, high]`, or NONE."""
        return f"[{', '.join(self.number(end, sign) for end in ends)}]" if ends else NONE

    def scaled(self, figure: Figure) -> tuple[float, Interval | None]:
        """Value and interval times the factor, for plots."""
        value, ends = figure.value * self.factor, figure.interval
        return value, ends and Interval(ends.low * self.factor, ends.high * self.factor)

    def text(self, figure: Figure | Estimate | None, sign: str = "") -> str:
        """`value [low, high]`; only the value without an interval; NONE without a figure."""
        if figure is None:
            return NONE
        value = self.number(figure.value, sign)
        return f"{value} {self.interval(figure.interval, sign)}" if figure.interval else value


HELD_OUT = "held-out real images"
OTHER_REAL = "other real images"
SPREAD = "spread"

# Digits: as many as the intervals of a few hundred images can tell apart, and no more.
METRICS = {
    "fid": Metric("FID", 1, better="lower", floor=OTHER_REAL, brackets=SPREAD),
    "kid": Metric("KID x 1000", 2, 1000, "lower", OTHER_REAL),
    "fd-texture": Metric("FD-texture", 2, better="lower", floor=OTHER_REAL, brackets=SPREAD),
    "kd-texture": Metric("KD-texture", 2, better="lower", floor=OTHER_REAL),
    "fd-dinov2": Metric("FD-dinov2", 1, better="lower", floor=OTHER_REAL, brackets=SPREAD),
    "kd-dinov2": Metric("KD-dinov2", 3, better="lower", floor=OTHER_REAL),
    SEPARABILITY_AUC: Metric("AUC", 3, better="lower", floor=OTHER_REAL),
    "precision": Metric("precision", 2, better="higher", floor=OTHER_REAL),
    "recall": Metric("recall", 2, better="higher", floor=OTHER_REAL),
    "density": Metric("density", 2, better="higher", floor=OTHER_REAL),
    "coverage": Metric("coverage", 2, better="higher", floor=OTHER_REAL),
    "nearest_train_distance": Metric("Distance to the nearest training image", 2, floor=HELD_OUT),
    "nearest_train_class": Metric(
        "Share whose nearest training image is of their class", 2, better="higher", floor=HELD_OUT
    ),
    "class_consistency": Metric("agreement", 2, better="higher"),
    "class_consistency_excess": Metric("difference", 2),
    "judge_accuracy": Metric("judge on real test images", 2, better="higher"),
    "gate_accuracy": Metric("gate on real test images", 2, better="higher"),
    "lesion_dice": Metric("Dice", 2, better="higher"),
    "lesion_found": Metric("with lesion", 0, 100),
    "lesion_area": Metric("area (% of content)", 1, 100),
    "lesion_aspect": Metric("height / width", 2),
    "lesion_taller_than_wide": Metric("taller than wide", 0, 100),
    "lesion_ellipticity": Metric("ellipticity", 2),
    "lesion_area_distance": Metric("distance of area (p)", 1, 100, "lower", OTHER_REAL),
    "lesion_aspect_distance": Metric("distance of aspect (p)", 2, better="lower", floor=OTHER_REAL),
    "lesion_ellipticity_distance": Metric("distance of ellipticity (p)", 3, better="lower", floor=OTHER_REAL),
    "accuracy": Metric("accuracy", 3, better="higher"),
    "macro_f1": Metric("macro F1", 3, better="higher"),
    "auc": Metric("AUC", 3, better="higher"),
    "copies": Metric("share of the corpus that copies a training image", 4, better="lower"),
    "copy_false_positives": Metric("share of units of held-out real images with one taken for a copy", 4),
    "copy_false_alarms_expected": Metric("false alarms allowed in the corpus", 4),
    "copy_threshold_image": Metric("score above which an image is a copy", 4),
    "copy_threshold_lesion": Metric("score above which a lesion is a copy", 4),
    "copy_sensitivity": Metric("share of planted copies found", 4, better="higher"),
    "training_images_copied": Metric("share of training images copied by the first n images", 4, better="lower"),
    "near_duplicates_inside": Metric("share of n sampled images with a near-duplicate among those n", 4),
}
"""Name as stored -> metric. Differences and p-values of a metric have suffixes and are not here."""

CLASS_RECALL = Metric("recall", 3, better="higher")
"""`recall` in a study: of a class by a classifier, and not that of neighbourhoods."""

DISTANCES = ("fid", "kid", "fd-texture", "kd-texture", "fd-dinov2", "kd-dinov2", SEPARABILITY_AUC)
"""Columns of the tables of distances, in their order."""

KERNEL = ("kid", "kd-texture", "kd-dinov2")
"""Kernel distances: pairs of arms have a difference of them."""

NEIGHBOURHOOD = ("precision", "recall", "density", "coverage")


def p_text(p_value: float) -> str:
    """Three decimals; never 0, which no test finds."""
    return f"{p_value:.3f}" if p_value >= 0.001 else "<0.001"


def p_equation(p_value: float) -> str:
    return f"p = {p_value:.3f}" if p_value >= 0.001 else "p < 0.001"


def arms_text(figure: Figure) -> str:
    """The arm, or of a difference `arm - against`."""
    return f"{figure.arm} - {figure.against}" if figure.against else figure.arm


def excludes_zero(figure: Figure) -> bool:
    return figure.interval is not None and figure.interval.excludes(0)
