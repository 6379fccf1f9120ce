"""A training step sees what (seed, step, position) say, padding carries no loss, and a resumed
run is the same run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from busray.config import Adapters
from busray.data.phantom import CLASSES, PROBES, phantom
from busray.model import finetune
from busray.model.adapters import adapter_sha256
from busray.model.finetune import FineTuner, starting_vectors
from busray.model.latents import EncodedImages, TrainingImages, encode_images
from busray.records import ContentBox, UserError
from tests.support.pipelines import tiny_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64
TOKENS = {"benign": "<us-benign>", "malignant": "<us-malignant>"}
WORDS = {"benign": "smooth", "malignant": "irregular"}
CAPTIONS = [f"{TOKENS[name]} ultrasound image" for name in ("benign", "malignant")] * 3


@pytest.fixture(scope="module")
def encoded() -> EncodedImages:
    images = np.stack([phantom(i, CLASSES[i % 2], PROBES["demo"], (SIZE, SIZE)).image for i in range(6)])
    boxes = [ContentBox(0, 0, SIZE, SIZE)] * 5 + [ContentBox(0, 16, SIZE, 32)]
    return encode_images(tiny_pipeline(), images, boxes, mirror=True, batch_size=4)


def tuner(encoded: EncodedImages, dtype: str = "float32", **changes: Any) -> FineTuner:
    settings = Adapters(
        **{"rank": 2, "vectors": 2, "batch_size": 4, "learning_rate": 1e-2, "token_learning_rate": 1e-2, **changes}
    )
    tokens = TOKENS if "ti" in settings.method else {}
    captions = CAPTIONS if tokens else ["smooth ultrasound image"] * 6
    pipe = tiny_pipeline(dtype)
    return FineTuner(pipe, settings, tokens, WORDS, TrainingImages([encoded]), captions, seed=5)


def train(tuner: FineTuner, first: int, last: int, shares: int = 1) -> list[float]:
    losses = []
    for step in range(first, last):
        losses.append(sum(tuner.accumulate(step, range(rank, 4, shares)) for rank in range(shares)))
        tuner.apply(step)
    return losses


def values(tuner: FineTuner) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in tuner.parameters.items()}


def test_mirrored_copies_follow_the_images(encoded: EncodedImages, tmp_path: Path) -> None:
    assert encoded.images == 6
    assert encoded.mean.shape == encoded.std.shape == (12, 8, SIZE // 4, SIZE // 4)
    assert not torch.equal(encoded.mean[0], encoded.mean[6])
    assert (encoded.std > 0).all()
    (tmp_path / "part").write_bytes(encoded.to_bytes())
    again = EncodedImages.in_file(tmp_path / "part")
    assert torch.equal(again.mean, encoded.mean) and again.images == 6


def test_padding_carries_no_loss(encoded: EncodedImages) -> None:
    made = tuner(encoded)
    padded = [p for p in range(400) if made._row(p) % 6 == 5][:1]
    step, position = padded[0] // 4, padded[0] % 4
    before = made.accumulate(step, [position])
    gradients = {n: p.grad.clone() for n, p in made.parameters.items() if p.grad is not None}
    row = made._row(padded[0])
    spoilt = encoded.std.clone()
    spoilt[row, :, : SIZE // 16] = 0  # the padding's cells: their noisy values still reach the content's cells
    assert float(encoded.weight[row, 0, 0].max()) == 0 and float(encoded.weight[row, 0, SIZE // 8].min()) == 1
    weight = encoded.weight.clone()
    weight[row, :, : SIZE // 16] = 1
    other = tuner(EncodedImages(encoded.mean, encoded.std, weight, 6))
    after = other.accumulate(step, [position])
    assert before != pytest.approx(after, rel=1e-6), "weights of padding cells must matter where they are not zero"
    assert all(torch.isfinite(g).all() for g in gradients.values())


def test_splitting_a_batch_over_workers_gives_the_same_gradients(encoded: EncodedImages) -> None:
    """In float64, where the order of a sum makes no difference that could be taken for a mistake.

    The steps themselves are not compared: Adam turns the rounding of a gradient near 0 into a step
    of any sign.
    """
    double = EncodedImages(encoded.mean.double(), encoded.std.double(), encoded.weight.double(), encoded.images)
    alone, shared = (tuner(double, "float64") for _ in range(2))
    for step in range(2):
        shared.load_state(alone.state_bytes())
        whole = alone.accumulate(step, range(4))
        parts = sum(shared.accumulate(step, range(rank, 4, 2)) for rank in range(2))
        assert parts == pytest.approx(whole, rel=1e-6)
        for name, parameter in alone.parameters.items():
            grad, summed = parameter.grad, shared.parameters[name].grad
            assert grad is not None and summed is not None
            assert bool(grad.norm() > 0) == (step > 0 or "lora_A" not in name), name  # B is 0 at the start
            assert (grad - summed).norm() <= 1e-4 * grad.norm(), name
        alone.apply(step)
        shared.apply(step)


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(encoded: EncodedImages) -> None:
    whole = tuner(encoded, ema=0.9)
    train(whole, 0, 2)
    state = whole.state_bytes()
    train(whole, 2, 4)
    resumed = tuner(encoded, ema=0.9)
    resumed.load_state(state)
    train(resumed, 2, 4)
    assert all(torch.equal(value, values(resumed)[name]) for name, value in values(whole).items())
    assert adapter_sha256(whole.adapter_files({})) == adapter_sha256(resumed.adapter_files({}))


@pytest.mark.parametrize(
    ("method", "trained"), [("lora", {"unet"}), ("ti", {"tokens"}), ("lora+ti", {"unet", "tokens"})]
)
def test_only_the_methods_own_weights_move(encoded: EncodedImages, method: str, trained: set[str]) -> None:
    made = tuner(encoded, method=method)
    frozen = {n: p.detach().clone() for n, p in made.pipe.unet.named_parameters() if "lora_" not in n}
    before = values(made)
    train(made, 0, 2)
    after = values(made)
    assert {name.split(".")[0] for name in before} == trained
    assert all(not torch.equal(before[name], after[name]) for name in before if "lora_B" in name or name == "tokens")
    assert all(torch.equal(value, dict(made.pipe.unet.named_parameters())[name]) for name, value in frozen.items())


def test_lora_on_the_text_encoder_is_an_option(encoded: EncodedImages) -> None:
    made = tuner(encoded, text_encoder=True)
    before = values(made)
    train(made, 0, 2)
    moved = [n for n in before if n.startswith("text_encoder.") and not torch.equal(before[n], values(made)[n])]
    assert moved
    names = load(made.adapter_files({})["pytorch_lora_weights.safetensors"])
    assert any(name.startswith("text_encoder.") for name in names)


def test_lora_on_the_convolutions_is_an_option(encoded: EncodedImages) -> None:
    made = tuner(encoded, convolutions=True)
    before = values(made)
    train(made, 0, 2)
    moved = [n for n in before if ".conv1.lora_B" in n and not torch.equal(before[n], values(made)[n])]
    assert any("down_blocks.0" in name for name in moved), "the finest blocks, which have no attention"
    names = load(made.adapter_files({})["pytorch_lora_weights.safetensors"])
    assert any(".conv1." in name for name in names)
    assert not any(".conv1." in name for name in values(tuner(encoded)))


def test_training_lowers_the_loss_on_what_it_sees(encoded: EncodedImages) -> None:
    made = tuner(encoded, caption_dropout=0)
    before = made.validation_loss(TrainingImages([encoded]), CAPTIONS)
    train(made, 0, 25)
    assert made.validation_loss(TrainingImages([encoded]), CAPTIONS) < before


def test_each_batch_of_validation_is_a_sign_of_life(encoded: EncodedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "VALIDATION_BATCH", 4)
    beats: list[int] = []
    tuner(encoded).validation_loss(TrainingImages([encoded]), CAPTIONS, lambda: beats.append(1))
    assert len(beats) == 2  # of six images


def test_snr_weighting_weakens_easy_steps_only(encoded: EncodedImages) -> None:
    made = tuner(encoded, snr_gamma=5.0)
    alpha = torch.tensor([0.999, 0.5, 0.01])
    weights = made._snr_weight(alpha, "v_prediction")
    snr = alpha / (1 - alpha)
    torch.testing.assert_close(weights, torch.minimum(snr, torch.tensor(5.0)) / (snr + 1))
    torch.testing.assert_close(made._snr_weight(alpha, "epsilon"), torch.minimum(snr, torch.tensor(5.0)) / snr)
    assert torch.equal(tuner(encoded)._snr_weight(alpha, "epsilon"), torch.ones(3))


def test_the_adapters_hold_the_moving_average(encoded: EncodedImages) -> None:
    made = tuner(encoded, ema=0.5, method="ti")
    train(made, 0, 3)
    kept = load(made.adapter_files({})["us-benign.safetensors"])["<us-benign>"]
    assert made.ema is not None
    torch.testing.assert_close(kept, made.ema["tokens"][:2])
    assert not torch.equal(kept, made.parameters["tokens"][:2])


def test_what_is_validated_during_training_is_the_moving_average(encoded: EncodedImages) -> None:
    made, captions = tuner(encoded, ema=0.5, method="ti"), ["a <us-benign>"] * encoded.images
    train(made, 0, 3)
    raw = {name: value.clone() for name, value in values(made).items()}
    with made.averaged_weights():
        within = made.validation_loss(TrainingImages([encoded]), captions)
    assert all(torch.equal(value, raw[name]) for name, value in values(made).items())
    assert within != made.validation_loss(TrainingImages([encoded]), captions)
    assert made.ema is not None
    made._put(made.ema)
    assert within == made.validation_loss(TrainingImages([encoded]), captions)


def test_a_token_that_is_a_word_of_the_base_is_refused(encoded: EncodedImages) -> None:
    pipe = tiny_pipeline()
    FineTuner(pipe, Adapters(method="ti"), TOKENS, WORDS, TrainingImages([encoded]), CAPTIONS, seed=5)
    with pytest.raises(UserError, match="is a word of this base already"):
        FineTuner(pipe, Adapters(method="ti"), TOKENS, WORDS, TrainingImages([encoded]), CAPTIONS, seed=5)


def test_a_caption_that_the_text_encoder_would_cut_off_is_refused_before_the_first_step(encoded: EncodedImages) -> None:
    captions = ["dark"] * 5 + ["dark " * 90]
    with pytest.raises(UserError, match="this base reads 77"):
        FineTuner(tiny_pipeline(), Adapters(method="lora"), {}, WORDS, TrainingImages([encoded]), captions, seed=5)


@pytest.mark.parametrize(
    ("words", "vectors", "expected"),
    [
        ([1.0, 3.0], 2, [1.0, 3.0]),
        ([1.0, 3.0, 5.0], 2, [2.0, 5.0]),
        ([1.0, 3.0], 1, [2.0]),
        ([2.0], 3, [2.0, 2.1, 2.2]),
        ([1.0, 3.0], 3, [2.0, 2.1, 2.2]),
    ],
)
def test_a_token_starts_from_its_phrase_a_word_for_each_vector(
    words: list[float], vectors: int, expected: list[float]
) -> None:
    started = starting_vectors(torch.tensor(words)[:, None].expand(-1, 4), vectors)
    assert torch.allclose(torch.stack(started), torch.tensor(expected)[:, None].expand(-1, 4))
