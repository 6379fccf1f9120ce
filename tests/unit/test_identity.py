"""Golden values of identities: a corpus drawn with an older version must stay the same corpus."""

import enum
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from busray.identity import (
    STAGES,
    bottom_k,
    canonical_json,
    draw_id,
    fingerprint,
    fingerprint_rows,
    image_id,
    index_of,
    seed_for,
    sha256_bytes,
    sha256_file,
)


def test_canonical_json_has_sorted_keys_no_spaces_and_plain_unicode() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"z": "ü", "y": ()}}
    assert canonical_json(value) == '{"a":{"y":[],"z":"ü"},"b":[1,2.5,null,true]}'


def test_a_fingerprint_is_the_sha256_of_the_canonical_json() -> None:
    value = {"size": 128, "prompts": ["{token} scan"], "refine": None, "guidance_scale": 7.5}
    text = '{"guidance_scale":7.5,"prompts":["{token} scan"],"refine":null,"size":128}'
    assert fingerprint(value) == hashlib.sha256(text.encode()).hexdigest()
    assert fingerprint(value) == "8aba2bb5430df2e05b68a78a056fb79f213f10b49e90029693f2e231743cac54"


def test_a_fingerprint_taken_a_row_at_a_time_is_that_of_the_list() -> None:
    rows = [{"b": 1, "a": "ü"}, {}, {"c": None}]
    for n in range(4):
        assert fingerprint_rows(iter(rows[:n])) == fingerprint(rows[:n])


def test_the_order_of_keys_does_not_matter_and_the_order_of_a_list_does() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
    assert fingerprint([1, 2]) == fingerprint((1, 2))


def test_values_that_only_look_alike_have_different_fingerprints() -> None:
    values: list[Any] = [1, 1.0, "1", True, [1], {"1": 1}, None, "null"]
    assert len({fingerprint(value) for value in values}) == len(values)


class Plain(enum.Enum):
    A = 1


@pytest.mark.parametrize(
    "value, where",
    [
        ({"a": {1, 2}}, "value.a is a set"),
        ({"a": [0, Path("x")]}, r"value.a\[1\] is a \w*Path"),
        ([b"bytes"], r"value\[0\] is a bytes"),
        ({"n": np.int64(3)}, "value.n is a int64"),
        (np.zeros(2), "value is a ndarray"),
        (Plain.A, "value is a Plain"),
        ({1: "x"}, "key that is no string: 1"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_canonical_form_is_refused_with_its_place(value: Any, where: str) -> None:
    with pytest.raises(TypeError, match=where):
        fingerprint(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")]])
def test_numbers_that_json_does_not_know_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        fingerprint(value)


def test_seeds_are_golden() -> None:
    assert seed_for(1000, "benign", 0, 0, "txt2img") == 1_822_789_707_471_351_894
    assert seed_for(1000, "benign", 999_999, 0, "img2img") == 4_824_011_401_723_468_420
    assert seed_for(2**63 - 1, "malignant", 7, 2, "txt2img") == 4_239_737_243_475_713_615
    assert seed_for(42, "all", 0, 0, "split") == 1_064_410_410_553_105_574


def test_each_part_of_a_draw_changes_its_seed() -> None:
    draws = [
        (1000, "benign", 0, 0, "txt2img"),
        (1001, "benign", 0, 0, "txt2img"),
        (1000, "malignant", 0, 0, "txt2img"),
        (1000, "benign", 1, 0, "txt2img"),
        (1000, "benign", 0, 1, "txt2img"),
        (1000, "benign", 0, 0, "img2img"),
    ]
    assert len({seed_for(*draw) for draw in draws}) == len(draws)


def test_names_that_run_into_numbers_share_no_seed() -> None:
    assert seed_for(1, "a1", 1, 0, "txt2img") != seed_for(1, "a", 11, 0, "txt2img")


def test_seeds_fit_torch_and_arrow_and_fill_their_63_bits() -> None:
    seeds = [seed_for(5, "benign", index, 0, "txt2img") for index in range(4000)]
    assert len(set(seeds)) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):
        ones = sum(seed >> bit & 1 for seed in seeds)
        assert abs(ones - 2000) < 5 * 32, f"bit {bit}"  # five standard deviations


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown stage 'upscale'"):
        seed_for(1, "benign", 0, 0, "upscale")
    assert len(set(STAGES)) == len(STAGES)


def test_image_ids_are_golden_and_sort_by_index() -> None:
    assert image_id("0123456789abcdef" * 4, "benign", 42) == "0123456789ab-benign-00000042"
    ids = [image_id("f" * 64, "benign", index) for index in (0, 9, 10, 99_999, 100_000, 99_999_999)]
    assert ids == sorted(ids)


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "abc") == sha256_bytes(b"abc") == abc


def test_the_bottom_k_are_those_of_smallest_hash_whatever_order_and_shards_they_come_in() -> None:
    ids = [draw_id("benign", i) for i in range(500)]
    by_hash = sorted(ids, key=lambda image: hashlib.sha256(image.encode()).hexdigest())
    sample = bottom_k(iter(ids), 20, str)
    assert sample == by_hash[:20] and bottom_k(ids[::-1], 5, str) == sample[:5]
    shards = [bottom_k(ids[i::7], 20, str) for i in range(7)]
    assert bottom_k([image for shard in shards for image in shard], 20, str) == sample
    assert bottom_k(ids[:3], 20, str) == sorted(ids[:3], key=by_hash.index)


def test_the_index_is_in_the_id() -> None:
    assert index_of(image_id("ab" * 32, "us-benign", 1_234_567)) == 1_234_567
    assert image_id("ab" * 32, "us-benign", 7) == "abababababab-" + draw_id("us-benign", 7)
