"""How a pool's items are handed out."""

import pytest

from busray.cluster.pool import MOST_BUNDLES, MOST_TOGETHER, ROWS_A_WORKER, _handfuls


@pytest.mark.parametrize("items", [1, 2, 63, 64, 65, 1_000, 4_096, 100_001])
@pytest.mark.parametrize("workers", [1, 16])
def test_every_item_is_in_one_row_and_rows_are_enough_for_all_workers(items: int, workers: int) -> None:
    size = -(-items // MOST_BUNDLES)
    rows = _handfuls(items, size, ROWS_A_WORKER * workers)
    named: list[int] = []
    for row in rows:
        assert 0 <= row["start"] < row["end"] <= size
        named += range(row["bundle"] * size + row["start"], row["bundle"] * size + row["end"])
    assert named == list(range(items))
    assert max(row["end"] - row["start"] for row in rows) <= MOST_TOGETHER
    assert len(rows) >= min(items, ROWS_A_WORKER * workers)


def test_of_a_million_images_a_row_is_several_shards_and_a_worker_reads_a_part_of_the_items() -> None:
    shards, workers = 4_000, 16
    size = -(-shards // MOST_BUNDLES)
    assert len(_handfuls(shards, size, ROWS_A_WORKER * workers)) <= shards / 10
    assert size <= shards / 50
