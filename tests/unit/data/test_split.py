"""Splits: stratified and seeded, and nothing that belongs together on two sides."""

from collections import Counter

import pytest

from busray.data.split import SPLITS, split
from busray.records import SourceImage


def image(class_name: str, number: int, group: str | None = None) -> SourceImage:
    return SourceImage(f"{class_name}/{number:04d}.png", class_name, 10, 10, "L", f"{number:064d}", group=group)


IMAGES = [image("benign", i) for i in range(200)] + [image("malignant", i) for i in range(100)]


def side_of(sides: dict[str, tuple[SourceImage, ...]]) -> dict[str, str]:
    """file -> its split; fails where a file is in two."""
    found: dict[str, str] = {}
    for side, images in sides.items():
        for one in images:
            assert one.file not in found
            found[one.file] = side
    return found


def test_every_image_is_in_exactly_one_split() -> None:
    sides = split(IMAGES, [], [], 0.15, 0.2, seed=42)
    assert tuple(sides) == SPLITS
    assert set(side_of(sides)) == {one.file for one in IMAGES}


@pytest.mark.parametrize("val, test", [(0.15, 0.2), (0.1, 0.3), (0.25, 0.25)])
def test_each_class_keeps_its_shares(val: float, test: float) -> None:
    sides = split(IMAGES, [], [], val, test, seed=42)
    for name, n in (("benign", 200), ("malignant", 100)):
        for side, share in (("train", 1 - val - test), ("val", val), ("test", test)):
            count = sum(one.class_name == name for one in sides[side])
            assert abs(count - share * n) <= 1


def test_each_class_keeps_its_shares_where_clusters_are_large() -> None:
    clusters = [[f"benign/{i + j:04d}.png" for j in range(7)] for i in range(0, 140, 7)]
    sides = split(IMAGES, clusters, [], 0.15, 0.2, seed=42)
    counts = {side: Counter(one.class_name for one in images) for side, images in sides.items()}
    for side, share in (("train", 0.65), ("val", 0.15), ("test", 0.2)):
        assert abs(counts[side]["benign"] - share * 200) <= 4
        assert abs(counts[side]["malignant"] - share * 100) <= 1


def test_the_seed_decides_and_nothing_else_does() -> None:
    again = split(list(reversed(IMAGES)), [], [], 0.15, 0.2, seed=42)
    assert split(IMAGES, [], [], 0.15, 0.2, seed=42) == again
    assert split(IMAGES, [], [], 0.15, 0.2, seed=43) != again


def test_splits_are_golden() -> None:
    """A changed rule would move images between train and test of a data set that adapters are
    already trained on."""
    sides = split([image("benign", i) for i in range(10)], [], [], 0.2, 0.3, seed=42)
    assert [int(one.file[7:11]) for one in sides["test"]] == [2, 4, 9]
    assert [int(one.file[7:11]) for one in sides["val"]] == [3, 8]


def test_a_cluster_is_never_torn() -> None:
    clusters = [[f"benign/{i:04d}.png", f"benign/{i + 1:04d}.png", f"benign/{i + 2:04d}.png"] for i in range(0, 90, 3)]
    for seed in range(5):
        side = side_of(split(IMAGES, clusters, [], 0.15, 0.2, seed))
        assert all(len({side[file] for file in cluster}) == 1 for cluster in clusters)


def test_a_group_is_never_torn_even_across_classes() -> None:
    images = [image(name, i, group=f"patient {i % 20}") for name in ("benign", "malignant") for i in range(60)]
    for seed in range(5):
        side = side_of(split(images, [], [], 0.2, 0.2, seed))
        for patient in range(20):
            files = [one.file for one in images if one.group == f"patient {patient}"]
            assert len(files) == 6
            assert len({side[file] for file in files}) == 1


def test_a_cluster_that_spans_groups_binds_both_groups() -> None:
    images = [image("benign", i, group=f"patient {i // 4}") for i in range(80)]
    bridges = [[f"benign/{8 * i + 3:04d}.png", f"benign/{8 * i + 4:04d}.png"] for i in range(10)]
    for seed in range(5):
        side = side_of(split(images, bridges, [], 0.2, 0.2, seed))
        for i in range(10):
            assert len({side[f"benign/{8 * i + j:04d}.png"] for j in range(8)}) == 1


def test_images_without_a_group_are_no_group() -> None:
    sides = split([image("benign", i) for i in range(20)], [], [], 0.2, 0.2, seed=1)
    assert all(sides[side] for side in SPLITS)


def test_conflicts_are_in_no_split_and_their_group_stays_together() -> None:
    images = [image("benign", i, group=f"patient {i // 2}") for i in range(40)]
    images += [image("malignant", i) for i in range(40)]
    conflict = ["benign/0000.png", "malignant/0000.png"]
    side = side_of(split(images, [conflict, ["benign/0002.png", "benign/0004.png"]], [conflict], 0.2, 0.2, seed=3))
    assert set(side) == {one.file for one in images} - set(conflict)
    assert len({side[f"benign/{i:04d}.png"] for i in (2, 3, 4, 5)}) == 1


def test_a_large_cluster_goes_where_there_is_room_for_it() -> None:
    images = [image("benign", i) for i in range(20)]
    cluster = [one.file for one in images[:10]]
    for seed in range(20):
        sides = split(images, [cluster], [], 0.2, 0.2, seed)
        assert [len(sides[side]) for side in SPLITS] == [12, 4, 4]
        assert set(cluster) <= {one.file for one in sides["train"]}


def test_each_image_carries_the_cluster_that_the_split_kept_together() -> None:
    images = [image("benign", i, group=f"patient {i // 2}" if i < 8 else None) for i in range(20)]
    near = [["benign/0001.png", "benign/0002.png"], ["benign/0010.png", "benign/0015.png"]]
    found = {one.file: one.cluster for side in split(images, near, [], 0.2, 0.2, seed=1).values() for one in side}
    assert {found[f"benign/{i:04d}.png"] for i in range(4)} == {"benign/0000.png"}  # two patients, joined
    assert found["benign/0004.png"] == found["benign/0005.png"] == "benign/0004.png"
    assert found["benign/0010.png"] == found["benign/0015.png"] == "benign/0010.png"
    assert found["benign/0011.png"] == "benign/0011.png"
