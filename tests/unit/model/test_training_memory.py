"""Training in less memory: smaller slices, bfloat16, checkpointing. The gradients stay the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from busray.config import Adapters
from busray.data.phantom import CLASSES, PROBES, phantom
from busray.model.finetune import FineTuner, works_in_bfloat16
from busray.model.latents import EncodedImages, TrainingImages, encode_images
from busray.model.memory import in_slices
from busray.records import ContentBox
from tests.support.pipelines import tiny_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 32
BOXES = [ContentBox(0, 0, SIZE, SIZE)] * 4 + [ContentBox(0, 8, SIZE, 16)]
TOKENS, WORDS = {"benign": "<us-benign>"}, {"benign": "smooth"}
LAYER = "down_blocks.1.resnets.0.conv1"


def pictures() -> np.ndarray:
    return np.stack([phantom(i, CLASSES[i % 2], PROBES["demo"], (SIZE, SIZE)).image for i in range(len(BOXES))])


@pytest.fixture(scope="module")
def encoded() -> EncodedImages:
    return encode_images(tiny_pipeline(), pictures(), BOXES, mirror=True, batch_size=5)


def tuner(encoded: EncodedImages, unet: torch.nn.Module | None = None, **changes: Any) -> FineTuner:
    """Adapters whose second matrices are not zero, so that every parameter has a gradient."""
    settings = Adapters(**{"rank": 2, "batch_size": 3, **changes})
    captions = ["a <us-benign> spot"] * 5
    pipe = tiny_pipeline()
    if unet is not None:
        pipe.register_modules(unet=unet)
    made = FineTuner(pipe, settings, TOKENS, WORDS, TrainingImages([encoded]), captions, seed=5)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in made.parameters.items():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return made


def gradients(made: FineTuner) -> dict[str, torch.Tensor]:
    made.accumulate(0, range(3))
    return {name: parameter.grad for name, parameter in made.parameters.items() if parameter.grad is not None}


def apart(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The difference of two sets of gradients, as a share of their norm."""
    assert found.keys() == wanted.keys() and found
    differences = torch.cat([(found[name] - wanted[name]).flatten() for name in wanted])
    return float(differences.norm() / torch.cat([gradient.flatten() for gradient in wanted.values()]).norm())


def calls(made: FineTuner, layer: str = LAYER) -> list[torch.Tensor]:
    """Collects what a layer of the UNet gives at each of its calls."""
    outputs: list[torch.Tensor] = []
    made.pipe.unet.get_submodule(layer).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    return outputs


@pytest.fixture(scope="module")
def whole(encoded: EncodedImages) -> dict[str, torch.Tensor]:
    return gradients(tuner(encoded))


def test_micro_batches_add_up_to_the_gradients_of_the_whole_batch(
    encoded: EncodedImages, whole: dict[str, torch.Tensor]
) -> None:
    made = tuner(encoded, micro_batch_size=2)
    outputs = calls(made)
    assert apart(gradients(made), whole) < 1e-5
    assert [len(output) for output in outputs] == [2, 1]


def test_a_batch_that_memory_does_not_hold_is_done_in_halves_from_then_on(
    encoded: EncodedImages, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tuner(encoded)
    plain, tried = made._losses, []

    def small(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        tried.append(len(latents))
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(latents, *rest)

    monkeypatch.setattr(made, "_losses", small)
    assert apart(gradients(made), whole) < 1e-5
    assert tried == [3, 1, 1, 1]
    made.accumulate(1, range(3))
    assert tried[4:] == [1] * 3


def test_memory_that_ends_within_the_backward_pass_leaves_no_part_of_a_gradient(
    encoded: EncodedImages, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tuner(encoded)
    plain = torch.autograd.grad

    def fails_once(*arguments: Any, **options: Any) -> Any:
        found = plain(*arguments, **options)
        monkeypatch.setattr(torch.autograd, "grad", plain)
        del found
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.autograd, "grad", fails_once)
    assert apart(gradients(made), whole) < 1e-5


def test_checkpointing_computes_blocks_again_and_changes_no_gradient(
    encoded: EncodedImages, whole: dict[str, torch.Tensor]
) -> None:
    made, plain = tuner(encoded, gradient_checkpointing=True), tuner(encoded)
    again, once = calls(made), calls(plain)
    assert apart(gradients(made), whole) < 1e-5
    gradients(plain)
    assert len(again) == 2 and len(once) == 1


def test_bfloat16_is_for_the_networks_and_not_for_the_adapters(
    encoded: EncodedImages, whole: dict[str, torch.Tensor]
) -> None:
    made = tuner(encoded, precision="bfloat16", gradient_checkpointing=True)
    outputs = calls(made)
    found = gradients(made)
    assert outputs[0].dtype == torch.bfloat16
    assert {parameter.dtype for parameter in made.parameters.values()} == {torch.float32}
    frozen = [p for p in made.pipe.unet.parameters() if not p.requires_grad and p.ndim > 1]
    assert {parameter.dtype for parameter in frozen} == {torch.bfloat16}
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert 1e-4 < apart(found, whole) < 0.1
    made.apply(0)
    state = made.optimiser.state[next(iter(made.parameters.values()))]
    assert state["exp_avg"].dtype == torch.float32


def test_only_a_gpu_is_taken_for_one_that_computes_in_bfloat16() -> None:
    cpu = torch.device("cpu")
    found = [works_in_bfloat16(precision, cpu) for precision in ("auto", "float32", "bfloat16")]
    assert found == [False, False, True]


def narrow_unet() -> UNet2DConditionModel:
    """A denoiser of the embedded base's kinds of layers, but so few that compiling takes a minute:
    attention is in its middle alone."""
    torch.manual_seed(4)
    return UNet2DConditionModel(
        in_channels=8,
        out_channels=8,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(16,),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=4,
    )


@pytest.mark.slow  # a minute of g++
def test_training_of_a_compiled_unet_gives_the_same_adapters(encoded: EncodedImages) -> None:
    compiled, plain = tuner(encoded, narrow_unet(), compile=True), tuner(encoded, narrow_unet())
    before = {name: parameter.detach().clone() for name, parameter in plain.parameters.items()}
    compiler = torch._dynamo.utils.counters["stats"]
    graphs = compiler["unique_graphs"]
    found = gradients(compiled)
    assert compiler["unique_graphs"] > graphs, "the denoiser was not compiled"
    # Sums in another order: rounding of float32, some 1e-7 of each term.
    assert apart(found, gradients(plain)) < 1e-5
    for made in (compiled, plain):
        made.apply(0)
        made.accumulate(1, range(3))
        made.apply(1)
    # Adam's first steps have the size of the rate whatever the gradient's size. So rounding may
    # turn those of gradients near 0, which are few: a hundredth of the change is allowed.
    change = {name: parameter.detach() - before[name] for name, parameter in plain.parameters.items()}
    same = {name: parameter.detach() - before[name] for name, parameter in compiled.parameters.items()}
    assert apart(same, change) < 0.01
    assert set(compiled.adapter_files({})) == set(plain.adapter_files({}))


def test_images_that_are_encoded_in_parts_are_the_same_rows(encoded: EncodedImages, tmp_path: Path) -> None:
    parts = []
    for number, part in enumerate((slice(0, 2), slice(2, 4), slice(4, 5))):
        # One after the other, or the autoencoder would round a batch of another shape otherwise.
        made = encode_images(tiny_pipeline(), pictures()[part], BOXES[part], mirror=True, batch_size=1)
        path = tmp_path / str(number)
        path.write_bytes(made.to_bytes())
        parts.append(EncodedImages.in_file(path))
        path.unlink()
    several = TrainingImages(parts)
    one = TrainingImages([encode_images(tiny_pipeline(), pictures(), BOXES, mirror=True, batch_size=1)])
    assert (several.images, several.rows, several.shape) == (one.images, one.rows, one.shape) == (5, 10, (8, 8, 8))
    rows, cpu = [9, 0, 3, 5, 4, 7], torch.device("cpu")
    for found, wanted in zip(several.batch(rows, cpu), one.batch(rows, cpu), strict=True):
        assert torch.equal(found, wanted)


def out_of_memory_above(most: int, done: list[int]) -> Callable[[slice], None]:
    def work(part: slice) -> None:
        if part.stop - part.start > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        done.extend(range(part.start, part.stop))

    return work


def test_slices_become_as_small_as_memory_asks_for() -> None:
    done: list[int] = []
    assert in_slices(10, 8, out_of_memory_above(3, done)) == 2
    assert done == list(range(10))
    with pytest.raises(torch.OutOfMemoryError):
        in_slices(10, 8, out_of_memory_above(0, done))


def test_encoding_goes_on_in_smaller_slices_where_memory_ends(
    encoded: EncodedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, sizes, beats = tiny_pipeline(), [], []
    plain = pipe.vae.encode

    def encode(pixels: torch.Tensor) -> Any:
        sizes.append(len(pixels))
        # The copies that are mirrored come second, and may be what memory has no room for.
        if len(pixels) > 2 and len(sizes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(pixels)

    monkeypatch.setattr(pipe.vae, "encode", encode)
    found = encode_images(pipe, pictures(), BOXES, mirror=True, batch_size=5, beat=lambda n=0: beats.append(n))
    assert sizes == [5, 5, 2, 2, 2, 2, 1, 1] and sum(beats) == 5
    torch.testing.assert_close(found.mean, encoded.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.weight, encoded.weight)
