"""What sampling.preset=fast gains in time and costs in quality, part by part, on the embedded base.

    python -m benchmarks.fast_preset --images 120 --keep FOLDER

What is drawn stays in FOLDER, so that an interrupted run goes on with the arms that are left.
The same prompts and seeds in every arm. The reference is simulated scans, as the base was trained
on, that are not among the prompts' own. Quality: KID by Inception-2015, Frechet distance of texture
features, and how often a small classifier of simulated scans sees the prompt's class. Cost: CPU
seconds of this process, which a busy machine changes less than wall time.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from busray import config
from busray.data.phantom import CLASSES, PROBES, phantom
from busray.evidence.stats.frechet import Moments, frechet
from busray.evidence.stats.kernel import kid
from busray.model.base import load_pipeline
from busray.model.sample import Sampler
from busray.records import ContentBox, ImageSpec
from busray.vision.classifier import Classifier, Phase, Training, fit, probabilities, represent
from busray.vision.inception import InceptionFeatures, find_weights
from busray.vision.texture import texture_features

SIDE, BATCH = 128, 6
BOX = ContentBox(0, 0, SIDE, SIDE)
TRAINED, REFERENCE = 1_000_000, 2_000_000  # first seeds of the judge's and the reference's scans
GUIDANCE = 2.0
INTERVAL = (0.28, 5.42)  # Kynkaanniemi et al. 2024, arXiv 2404.07724, for Stable Diffusion XL
FAST_REFINE = 27  # x 0.3: 8 steps


@dataclass(frozen=True)
class Arm:
    name: str
    steps: int
    refine_steps: int  # of the refinement's schedule
    interval: tuple[float, float] | None = None  # of guidance
    deep_every: int = 1


ARMS = (
    Arm("50 + 15 steps (default)", 50, 50),
    Arm("20 + 8 steps", 20, FAST_REFINE),
    Arm("20 + 8, deep layers at every 2nd step (preset fast)", 20, FAST_REFINE, None, 2),
    Arm("20 + 8, guidance in an interval", 20, FAST_REFINE, INTERVAL),
    Arm("20 + 8, both", 20, FAST_REFINE, INTERVAL, 2),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=120, help="drawn in each arm (default 120)")
    parser.add_argument("--keep", type=Path, help="folder of the drawn images, an .npz for each arm")
    parser.add_argument("--reference", type=int, default=300, help="simulated scans (default 300)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    scans, _ = simulated(REFERENCE, options.reference)
    judge = trained_judge()
    extractor = InceptionFeatures(find_weights())
    inception = in_batches(extractor, scans)
    texture = texture_features(scans, [BOX] * len(scans))
    mean, deviation = texture.mean(0), texture.std(0) + 1e-9
    first: np.ndarray | None = None
    print(f"n = {options.images} an arm, {options.reference} simulated scans as reference, {SIDE} px")
    print("| arm | CPU s an image | gain | KID x 1000 | texture distance | class seen | as in the first arm |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    default = 0.0
    wanted = np.arange(options.images) % len(CLASSES)
    for arm in ARMS:
        images, seconds = kept(options.keep, options.images, arm)
        default = default or seconds
        estimate = kid(in_batches(extractor, images), inception)
        low, high = estimate.interval
        rows = (texture_features(images, [BOX] * len(images)) - mean) / deviation
        distance = frechet(Moments.of(rows), Moments.of((texture - mean) / deviation))
        seen = probabilities(judge, images).argmax(1)
        first = seen if first is None else first
        cells = [
            arm.name,
            f"{seconds:.2f}",
            f"{default / seconds:.2f}",
            f"{estimate.value * 1000:.1f} [{low * 1000:.1f}, {high * 1000:.1f}]",
            f"{distance:.2f}",
            f"{(seen == wanted).mean():.2f}",
            f"{(seen == first).mean():.2f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def simulated(first_seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(scans uint8 [n, s, s], labels int [n]) of all classes in turn."""
    labels = np.arange(count) % len(CLASSES)
    scans = []
    for i, label in enumerate(labels):
        scans.append(phantom(first_seed + i, CLASSES[label], PROBES["general"], (SIDE, SIDE)).image)
    return np.stack(scans), labels


def trained_judge() -> Classifier:
    """A small classifier of simulated scans."""
    scans, labels = simulated(TRAINED, 600)
    inputs = represent(scans, "cnn")
    training = Training("cnn", 400, 32, (3e-3,))
    return fit([Phase(inputs[150:], labels[150:])], (inputs[:150], labels[:150]), len(CLASSES), training, seed=0)


def in_batches(extractor: InceptionFeatures, images: np.ndarray) -> np.ndarray:
    return np.concatenate([extractor(images[at : at + 8]) for at in range(0, len(images), 8)])


def kept(folder: Path | None, count: int, arm: Arm) -> tuple[np.ndarray, float]:
    """As drawn(); from the folder where an earlier run has left it there."""
    if folder is None:
        return drawn(count, arm)
    file = folder / f"{count}-{arm.name.replace(' ', '-')}.npz"
    if not file.exists():
        images, seconds = drawn(count, arm)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(file, images=images, seconds=seconds)
    stored = np.load(file)
    return stored["images"], float(stored["seconds"])


def drawn(count: int, arm: Arm) -> tuple[np.ndarray, float]:
    """(images uint8 [n, s, s] of the classes in turn, CPU seconds an image)."""
    pipe = load_pipeline(config.Base())
    how = {"steps": arm.steps, "guidance_interval": arm.interval, "deep_every": arm.deep_every}
    sampling = config.Sampling(guidance_scale=GUIDANCE, batch_size=BATCH, **how)
    refine = config.Refine(strength=0.3, steps=arm.refine_steps, guidance_scale=GUIDANCE, handover="latent")
    sampler = Sampler(pipe, sampling, refine, SIDE, keep_txt2img=False)
    specs = []
    for i in range(count):
        prompt = phantom(i, CLASSES[i % len(CLASSES)], PROBES["general"], (SIDE, SIDE)).caption
        specs.append(ImageSpec(f"i-{i}", "", i, 0, prompt, 2 * i, 2 * i + 1, BOX, {}))
    began, images = time.process_time(), []
    for at in range(0, count, BATCH):
        images += [image.image for image in sampler.draw(specs[at : at + BATCH])]
    return np.stack(images), (time.process_time() - began) / count


if __name__ == "__main__":
    main()
