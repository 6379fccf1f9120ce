"""Figures and images as tests of the report need them: two arms, a floor, two classes."""

import io
from dataclasses import replace

from PIL import Image

from busray.records import Figure, Interval

CLASSES = ("benign", "malignant")
MARKUP = '"><script>alert(1)</script>&'


def png(value: int, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size, size), value).save(buffer, "png")
    return buffer.getvalue()


def figure(metric: str, value: float, arm: str, name: str = "all", protocol: str = "synthetic-only") -> Figure:
    """Of Inception against test images, a floor if real-against-real. KID has an interval."""
    interval = Interval(value - 0.01, value + 0.01) if metric.startswith("kid") else None
    n, reference = (40, 24) if name == "all" else (20, 12)
    about = ("test", protocol, "inception-v3-2015", name, arm, "letterbox", 128)
    return Figure(metric, value, interval, n, reference, *about, floor=protocol == "real-against-real")


def difference(value: float, metric: str = "kid_difference") -> Figure:
    return replace(figure(metric, value, "lora+ti"), against="base")


def arm_and_floor_figures(classes: tuple[str, ...] = CLASSES) -> list[Figure]:
    """FID and KID of the floor and of two arms, in the mixture too, and their difference."""
    figures = []
    for name in ("all", *classes):
        for metric, value in (("fid", 70), ("kid", 0)):
            figures.append(figure(metric, value, "real", name, "real-against-real"))
    for arm, fid, kid in (("base", 150.25, 0.08), ("lora+ti", 90.5, 0.02)):
        for name in ("all", *classes):
            figures += [figure("fid", fid, arm, name), figure("kid", kid, arm, name)]
    mixture = [figure("fid", 30.0, arm, protocol="paper-mixture") for arm in ("base", "lora+ti")]
    return [*figures, *mixture, difference(-0.06)]


def neighbour_figures(value: float, arms: tuple[str, ...] = ("real", "base", "lora+ti")) -> list[Figure]:
    """The same value of each metric of neighbourhoods."""
    figures = []
    for arm in arms:
        protocol = "real-against-real" if arm == "real" else "synthetic-only"
        for metric in ("precision", "recall", "density", "coverage"):
            figures.append(figure(metric, value, arm, protocol=protocol))
    return figures


def texture_figures() -> list[Figure]:
    """The same arms by another extractor, with distances and neighbourhoods of its own."""
    names = {"fid": "fd-texture", "kid": "kd-texture"}
    figures = []
    for f in [*arm_and_floor_figures(), *neighbour_figures(0.125)]:
        metric = names.get(f.metric[:3], f.metric[:3]) + f.metric[3:]
        figures.append(replace(f, metric=metric, extractor="texture-1"))
    return figures
