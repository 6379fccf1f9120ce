"""Templates: captions and prompts filled from tokens, classes and metadata; quotas that hold at
every length."""

from collections import Counter

import pytest

from busray.data.templates import column_shares, fill, quota_value
from busray.records import SourceImage, UserError


def image(class_name: str, **columns: str) -> SourceImage:
    return SourceImage("x.png", class_name, 10, 10, "L", "0" * 64, columns=columns)


def test_token_class_and_columns_are_filled_in() -> None:
    text = fill("{token} scan of {class}, BI-RADS {birads}", token="<b>", class_name="benign", columns={"birads": "4a"})
    assert text == "<b> scan of benign, BI-RADS 4a"


def test_a_template_without_fields_stays_as_it_is() -> None:
    assert fill("breast ultrasound, {{raw}}", token="<b>", class_name="benign", columns={}) == (
        "breast ultrasound, {raw}"
    )


def test_a_column_never_takes_the_place_of_token_or_class() -> None:
    columns = {"token": "stolen", "class": "stolen"}
    assert fill("{token} {class}", token="<b>", class_name="benign", columns=columns) == "<b> benign"


@pytest.mark.parametrize("template", ["{birads}", "{}", "{0}", "{token.nothing}", "{token:%z}"])
def test_what_cannot_be_filled_is_named_with_what_is_known(template: str) -> None:
    with pytest.raises(UserError) as caught:
        fill(template, token="<b>", class_name="benign", columns={"device": "A"})
    assert repr(template) in str(caught.value)
    assert "{class}, {device}, {token}" in str(caught.value)


def test_shares_are_those_of_the_class_and_leave_out_images_without_a_value() -> None:
    images = [image("benign", birads=value) for value in ("3", "3", "3", "2", "")]
    images += [image("benign"), image("malignant", birads="5")]
    assert column_shares(images, "benign", "birads") == {"2": 0.25, "3": 0.75}


def test_a_column_that_no_image_of_the_class_has_is_named_with_the_mend() -> None:
    with pytest.raises(UserError, match=r"classes\.benign\.quotas\.birads"):
        column_shares([image("malignant", birads="5")], "benign", "birads")


def test_quotas_hold_among_any_first_images() -> None:
    wanted = {"2": 0.1, "3": 0.3, "4": 0.6}
    values = [quota_value(wanted, index, seed=2**60 + 7) for index in range(2000)]
    for n in (10, 50, 100, 333, 2000):
        counts = Counter(values[:n])
        for value, share in wanted.items():
            assert abs(counts[value] - share * n) <= 3, (n, value)


@pytest.mark.parametrize("column", range(6))
def test_every_columns_quotas_hold_among_any_first_images(column: int) -> None:
    wanted = {"2": 0.1, "3": 0.3, "4": 0.6}
    for seed in range(0, 2**63, 2**60):
        values = [quota_value(wanted, index, seed, column) for index in range(2000)]
        for n in (10, 50, 100, 333, 2000):
            counts = Counter(values[:n])
            for value, share in wanted.items():
                assert abs(counts[value] - share * n) <= 5, (n, value)


def test_the_first_columns_values_are_the_golden_ratios() -> None:
    """Else corpora that were drawn with one column would go on with other prompts."""
    golden = ["ab"[(index * 0.6180339887498949) % 1 >= 0.5] for index in range(1000)]
    assert [quota_value({"a": 0.5, "b": 0.5}, index, 0) for index in range(1000)] == golden


def test_shares_need_not_sum_to_one() -> None:
    scaled, plain = {"a": 3.0, "b": 1.0}, {"a": 0.75, "b": 0.25}
    for index in range(200):
        assert quota_value(scaled, index, 5) == quota_value(plain, index, 5)


def test_an_images_value_depends_on_its_index_and_seed_alone() -> None:
    wanted = {"a": 0.5, "b": 0.5}
    first = [quota_value(wanted, index, 1) for index in range(100)]
    assert first == [quota_value(dict(reversed(wanted.items())), index, 1) for index in range(100)]
    assert first != [quota_value(wanted, index, 2**62) for index in range(100)]


def test_a_single_value_is_always_taken() -> None:
    assert {quota_value({"only": 0.3}, index, 2**63 - 1) for index in range(1000)} == {"only"}
