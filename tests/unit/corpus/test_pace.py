"""Images an hour, the time that is left, and sums from a sample of records: by hand."""

from dataclasses import replace

import pytest

from busray.corpus.pace import Sampled, drawing_hours, hours_left, images_per_hour, quarantined
from busray.records import Commit, Execution

CPU = Execution("cpu: one", "float32", 8, 1, {})
RECORD = Commit("benign", 0, 100, "data/x", "d", 1, 98, (("a", "broken"), ("b", "broken")), CPU, 1800.0)


def test_images_an_hour_are_those_of_the_last_ten_minutes() -> None:
    written = [(0.0, 1000), (400.0, 7), (401.0, 20), (1000.0, 30)]
    assert images_per_hour(written, now=1000.0) == 50 * 6


def test_a_driver_that_began_two_minutes_ago_is_measured_over_two_minutes() -> None:
    assert images_per_hour([(950.0, 10)], now=1000.0, since=880.0) == 10 * 30
    assert images_per_hour([(950.0, 10)], now=1000.0, since=-5.0) == 10 * 6
    assert images_per_hour([(950.0, 10)], now=1000.0, since=1000.0) == 0


def test_what_is_left_takes_images_over_rate() -> None:
    assert hours_left(300, 600.0) == 0.5
    assert hours_left(0, 0.0) == 0
    assert hours_left(300, 0.0) is None


def test_quarantined_images_are_exact_where_every_record_was_read() -> None:
    assert quarantined([RECORD, replace(RECORD, rejects=(), count=50)], images=150, records=2) == Sampled(2, 2, 2)


def test_of_a_sample_the_sums_grow_with_the_images() -> None:
    """2 of 150 images, half an hour of each of two records: of 1,500 images ten times as much."""
    other = replace(RECORD, rejects=(), count=50, execution=replace(CPU, device="cuda: two"), seconds=900.0)
    assert quarantined([RECORD, other], images=1500, records=30) == Sampled(20, 2, 30)
    hours = drawing_hours([RECORD, other], images=1500, records=30)
    assert hours == {"cpu: one": Sampled(pytest.approx(5), 2, 30), "cuda: two": Sampled(pytest.approx(2.5), 2, 30)}
    assert not hours["cpu: one"].is_exact


def test_without_records_nothing_is_said() -> None:
    assert quarantined([], 0, 0) == Sampled(0, 0, 0)
    assert drawing_hours([], 0, 0) == {}
