"""Nearness to the real images: figures agree with other computations of them."""

from dataclasses import replace

import numpy as np
import pytest

from busray.evidence.nearness import DISTANCE, SAME_CLASS, nearness_figures
from busray.evidence.real import RealFeatures
from busray.records import Figure
from tests.support.ablations import draws, real_draws, through_the_autoencoder


@pytest.fixture(scope="module")
def real() -> RealFeatures:
    return real_draws()


def of(figures: list[Figure], metric: str, arm: str, name: str = "all", floor: bool = False) -> Figure:
    (found,) = [f for f in figures if (f.metric, f.arm, f.class_name, f.floor) == (metric, arm, name, floor)]
    return found


def test_nearness_agrees_with_a_loop_and_exposes_copies_and_swapped_classes(real: RealFeatures) -> None:
    copies = {name: rows[:12] for name, rows in real.features["train"].items()}
    swapped = {"b": draws(12, 1, 3.0), "m": draws(12, 2)}
    figures = nearness_figures({"copies": copies, "swapped": swapped}, real, "test")
    assert of(figures, DISTANCE, "copies").value == pytest.approx(0, abs=1e-5)
    assert of(figures, SAME_CLASS, "copies").value == 1
    assert of(figures, SAME_CLASS, "swapped").value < 0.2
    everything = [(row, name) for name in ("b", "m") for row in real.features["train"][name]]
    distances, same = [], []
    for name, rows in real.features["test"].items():
        for row in rows:
            lengths = [float(np.linalg.norm(row - other)) for other, _ in everything]
            distances.append(min(lengths))
            same.append(everything[int(np.argmin(lengths))][1] == name)
    floor = of(figures, DISTANCE, "real test", floor=True)
    assert floor.value == pytest.approx(np.median(distances), rel=1e-5)
    assert of(figures, SAME_CLASS, "real test", floor=True).value == pytest.approx(np.mean(same))
    assert (floor.n, floor.n_reference, floor.reference, floor.interval) == (28, 60, "train", None)
    one = of(figures, DISTANCE, "swapped", "m")
    assert (one.n, one.n_reference, one.protocol) == (12, 60, "synthetic-only")


def test_the_references_own_images_through_the_autoencoder_have_a_frechet_distance_alone(real: RealFeatures) -> None:
    """An image and its reconstruction are not independent: no interval, kernel distance or AUC
    holds for them."""
    itself, others = (through_the_autoencoder(real, *arm) for arm in (("vae", "test", 14), ("vae-train", "train", 14)))
    assert {f.protocol for f in itself + others} == {"reconstruction"}
    assert {f.metric for f in itself} == {"fid"} and {f.class_name for f in itself} == {"all", "b", "m"}
    assert all(f.interval is None and f.replicates is None for f in itself)
    assert {"kid_p_value", "told_apart_auc", "recall"} < {f.metric for f in others}
    assert of(others, "kid", "vae-train").interval and of(others, "fid", "vae-train").interval
    assert of(itself, "fid", "vae").value < of(others, "fid", "vae-train").value


def test_a_perfect_autoencoder_has_no_distance_below_that_of_the_images_to_themselves(real: RealFeatures) -> None:
    perfect = through_the_autoencoder(real, "vae", "test", 14, noise=0.0)
    assert perfect and all(f.value == pytest.approx(0, abs=1e-5) for f in perfect)


def test_fid_of_decoded_real_images_of_shared_units_has_no_spread_over_parts(real: RealFeatures) -> None:
    """Images 0 and 1 of class b are one patient's; those of class m are each on their own."""
    twins = {**real.units["train"], "b": np.maximum(real.units["train"]["b"], 1)}
    made = through_the_autoencoder(replace(real, units={**real.units, "train": twins}), "vae-train", "train", 14)
    fid = {f.class_name: f for f in made if f.metric == "fid"}
    assert fid["m"].interval is not None and fid["m"].replicates == 5
    assert [(fid[name].interval, fid[name].replicates) for name in ("all", "b")] == [(None, None)] * 2
    assert of(made, "kid", "vae-train").interval is not None
