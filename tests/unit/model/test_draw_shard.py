"""draw_shard: a bad image does not cost the others, a batch too large is halved, a broken
device raises."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from busray.config import Sampling
from busray.model.sample import DrawnImage, Sampler, draw_shard
from busray.records import ContentBox, ImageSpec
from tests.support.pipelines import tiny_pipeline

SIZE = 64


def spec(index: int) -> ImageSpec:
    return ImageSpec(
        f"id-{index}", "benign", index, 0, "a breast ultrasound scan", index, index, ContentBox(0, 0, SIZE, SIZE)
    )


class FakeSampler:
    """Draws squares whose grey is the image's index; `fault` looks at each batch before it is
    drawn."""

    size, keep_txt2img = SIZE, True

    def __init__(
        self, batch_size: int, fault: Callable[[Sequence[ImageSpec]], str | None], is_float32: bool = True
    ) -> None:
        self.sampling = Sampling(batch_size=batch_size)
        self.decode_batch = batch_size
        self.fault = fault
        self.is_float32 = is_float32
        self.in_float32: list[int] = []
        self.batches: list[list[int]] = []

    halve_batch = Sampler.halve_batch

    def draw(self, specs: Sequence[ImageSpec]) -> list[DrawnImage]:
        assert 0 < len(specs) <= self.sampling.batch_size
        self.batches.append([spec.index for spec in specs])
        problem = self.fault(specs)
        grey = [np.full((SIZE, SIZE), spec.index, np.uint8) for spec in specs]
        return [DrawnImage(s, g, g, problem if s.index == 3 else None) for s, g in zip(specs, grey, strict=True)]

    def draw_in_float32(self, spec: ImageSpec) -> DrawnImage:
        self.in_float32.append(spec.index)
        return self.draw([spec])[0]


def counter() -> tuple[list[int], Callable[[int], None]]:
    """(the counts that beat got, beat)."""
    counts: list[int] = []
    return counts, counts.append


def test_an_image_that_raises_is_tried_again_alone_and_then_given_up_with_its_reason() -> None:
    def fault(specs: Sequence[ImageSpec]) -> None:
        if any(spec.index == 2 for spec in specs):
            raise ValueError("poisoned\nprompt")

    counts, beat = counter()
    sampler = FakeSampler(4, fault)
    drawn = draw_shard(sampler, [spec(i) for i in range(6)], beat)
    assert [d.spec.index for d in drawn] == list(range(6)) and sum(counts) == 6
    assert {d.spec.index: d.problem for d in drawn if d.problem} == {2: "ValueError: poisoned prompt"}
    assert all(d.image[0, 0] == d.spec.index for d in drawn if not d.problem)
    assert sampler.batches[1:5] == [[0] * 4, [1] * 4, [2] * 4, [3] * 4], "alone, in the same batch shape"


def test_an_image_that_is_not_finite_is_drawn_again_in_float32_and_kept() -> None:
    problems = iter(["latents or pixels are not finite"])
    sampler = FakeSampler(4, lambda specs: next(problems, None), is_float32=False)
    drawn = draw_shard(sampler, [spec(i) for i in range(4)], counter()[1])
    assert [d.problem for d in drawn] == [None] * 4 and sampler.in_float32 == [3]


def test_an_image_that_is_never_finite_is_given_up() -> None:
    sampler = FakeSampler(4, lambda specs: "not finite", is_float32=False)
    drawn = draw_shard(sampler, [spec(i) for i in range(4)], counter()[1])
    assert [d.problem for d in drawn] == [None, None, None, "not finite"] and sampler.in_float32 == [3]


def test_an_image_that_is_not_finite_in_float32_is_not_drawn_again() -> None:
    sampler = FakeSampler(4, lambda specs: "not finite")
    drawn = draw_shard(sampler, [spec(i) for i in range(4)], counter()[1])
    assert [d.problem for d in drawn] == [None, None, None, "not finite"]
    assert sampler.in_float32 == [] and len(sampler.batches) == 1


def no_device_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def no_machine_memory() -> None:
    torch.empty(2**50, dtype=torch.uint8)  # a petabyte: what torch raises here is no class of its own


def no_array() -> None:
    raise MemoryError


@pytest.mark.parametrize("fail", [no_device_memory, no_machine_memory, no_array])
def test_a_batch_that_memory_does_not_hold_is_halved_for_good_and_the_shard_begun_again(
    fail: Callable[[], None],
) -> None:
    def fault(specs: Sequence[ImageSpec]) -> None:
        if len(specs) > 2:
            fail()

    counts, beat = counter()
    sampler = FakeSampler(8, fault)
    drawn = draw_shard(sampler, [spec(i) for i in range(9)], beat)
    assert sampler.sampling.batch_size == 2 and not any(d.problem for d in drawn)
    assert [d.spec.index for d in drawn] == list(range(9)) and sum(counts) == 9
    assert [len(batch) for batch in sampler.batches] == [8, 4, 2, 2, 2, 2, 1]


def test_memory_that_ends_in_a_later_batch_takes_the_count_of_the_earlier_ones_back() -> None:
    def fault(specs: Sequence[ImageSpec]) -> None:
        if len(specs) == 4 and specs[0].index == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    counts, beat = counter()
    assert len(draw_shard(FakeSampler(4, fault), [spec(i) for i in range(8)], beat)) == 8
    assert counts == [4, -4, 2, 2, 2, 2]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("one is too many"), MemoryError("one"), torch.AcceleratorError("device assert")],
)
def test_a_device_that_cannot_draw_at_all_is_no_images_fault(error: Exception) -> None:
    def fault(specs: Sequence[ImageSpec]) -> None:
        raise error

    with pytest.raises(type(error)):
        draw_shard(FakeSampler(1, fault), [spec(0)], counter()[1])


def test_images_of_a_halved_batch_are_equal_within_one_grey_level() -> None:
    def drawn(batch_size: int) -> np.ndarray:
        sampler = Sampler(
            tiny_pipeline(),
            Sampling(steps=3, guidance_scale=2.0, batch_size=batch_size),
            None,
            SIZE,
            False,
        )
        return np.stack([d.image for d in draw_shard(sampler, [spec(i) for i in range(4)], counter()[1])]).astype(int)

    assert np.abs(drawn(4) - drawn(2)).max() <= 1


class BrokenSampler(FakeSampler):
    """Every image of every batch has the same problem."""

    def draw(self, specs: Sequence[ImageSpec]) -> list[DrawnImage]:
        return [replace(image, problem="not finite") for image in super().draw(specs)]


@pytest.mark.parametrize(("is_float32", "again"), [(True, []), (False, [0])])
def test_a_recipe_of_broken_images_costs_an_image_more_than_a_sound_one(is_float32: bool, again: list[int]) -> None:
    sampler = BrokenSampler(16, lambda specs: None, is_float32)
    drawn = draw_shard(sampler, [spec(i) for i in range(256)], counter()[1])
    assert {image.problem for image in drawn} == {"not finite"} and len(drawn) == 256
    assert sampler.in_float32 == again and len(sampler.batches) == 16 + len(again)


def test_a_shard_is_begun_again_where_decoding_took_smaller_slices_halfway() -> None:
    sampler = FakeSampler(4, lambda specs: None)

    def fault(specs: Sequence[ImageSpec]) -> None:
        if specs[0].index == 4:
            sampler.decode_batch = 2  # as Sampler does where the memory asks

    sampler.fault = fault
    counts, beat = counter()
    assert len(draw_shard(sampler, [spec(i) for i in range(8)], beat)) == 8
    assert counts == [4, 4, -8, 4, 4]


def test_images_that_all_raise_are_tried_one_by_one_in_the_first_batch_only() -> None:
    def fault(specs: Sequence[ImageSpec]) -> None:
        raise ValueError(f"prompt {specs[0].index} has 99 tokens")

    sampler = FakeSampler(16, fault)
    drawn = draw_shard(sampler, [spec(i) for i in range(256)], counter()[1])
    assert len(sampler.batches) == 16 + 16
    assert drawn[0].problem == "ValueError: prompt 0 has 99 tokens"
    assert drawn[255].problem == "ValueError: prompt 240 has 99 tokens (its whole batch, as those before)"


def test_two_bad_images_in_batches_of_one_do_not_give_up_a_third() -> None:
    def fault(specs: Sequence[ImageSpec]) -> None:
        if specs[0].index < 2:
            raise ValueError("bad")

    drawn = draw_shard(FakeSampler(1, fault), [spec(i) for i in range(3)], counter()[1])
    assert [image.problem is None for image in drawn] == [False, False, True]


@pytest.mark.parametrize(
    "words",
    ["CUDA error: uncorrectable ECC error encountered", "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", "NVML: lost"],
)
def test_a_broken_device_that_torch_reports_as_a_plain_error_is_no_images_fault(words: str) -> None:
    def fault(specs: Sequence[ImageSpec]) -> None:
        raise RuntimeError(words)

    with pytest.raises(RuntimeError, match=r"CU|NVML"):
        draw_shard(FakeSampler(4, fault), [spec(i) for i in range(4)], counter()[1])
