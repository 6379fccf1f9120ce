"""Tries settings of configs/demo.yaml on phantoms that its run does not look at, in one process.

    python -m benchmarks.demo_search --guidance 2 3.5 --adapters.learning_rate=1e-3

Adapters are trained on 33 phantoms a class of the demo's probe; 24 images a class are drawn with
them, and as many without, for each guidance scale. Reference: 120 other phantoms. KID by
Inception-2015; the interval of the difference is paired by seed. The judge is a linear classifier
of EfficientNet-lite0 features, trained on 240 further phantoms. `seen` counts the images of each
class that it takes for their own class. Nothing is refined. Prints Markdown.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from busray.config import Config
from busray.config_file import load_config
from busray.data.framing import content_box, frame
from busray.data.phantom import CLASSES, PROBES, phantom
from busray.data.templates import fill
from busray.evidence.stats.frechet import Moments, frechet
from busray.evidence.stats.kernel import kid, kid_difference
from busray.identity import seed_for
from busray.model.base import load_pipeline
from busray.model.finetune import FineTuner
from busray.model.latents import encode_images, training_images
from busray.model.sample import Sampler
from busray.records import ContentBox, ImageSpec
from busray.vision.classifier import Classifier, Phase, Training, fit, predict, represent
from busray.vision.inception import InceptionFeatures, find_weights

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
TRAIN, REFERENCE, JUDGE, JUDGE_VAL = 7, 99, 98, 97  # seeds of phantoms
DRAWN = 24  # images a class
ARCHITECTURE = "efficientnet-lite0"


def phantoms(seed: int, count: int, side: int) -> tuple[np.ndarray, list[ContentBox], np.ndarray]:
    """(images uint8 [3 count, side, side], their content boxes, labels), as write_dataset makes
    them."""
    images, boxes, labels = [], [], []
    for label, name in enumerate(CLASSES):
        for i in range(count):
            rng = np.random.default_rng([seed, label, i])
            height, width = (max(16, round(at * rng.uniform(0.88, 1.12))) for at in (168, 208))
            scan = phantom(int(rng.integers(2**62)), name, PROBES["demo"], (height, width)).image
            images.append(frame(scan, side, "letterbox"))
            boxes.append(content_box(width, height, side, "letterbox"))
            labels.append(label)
    return np.stack(images), boxes, np.array(labels)


def trained_judge(side: int) -> Classifier:
    train, _, labels = phantoms(JUDGE, 80, side)
    val, _, val_labels = phantoms(JUDGE_VAL, 30, side)
    phase = Phase(represent(train, ARCHITECTURE, "mirror"), labels)
    validation = represent(val, ARCHITECTURE), val_labels
    return fit([phase], validation, len(CLASSES), Training(ARCHITECTURE, 400, 32, (3e-3,)), 5)


def adapted(config: Config, images: np.ndarray, boxes: list[ContentBox], labels: np.ndarray) -> Any:
    """A pipeline with adapters trained on these images."""
    settings, tokens = config.adapters, config.tokens() if config.uses_tokens else {}
    pipe = load_pipeline(config.base, dtype="float32")
    encoded = encode_images(pipe, images, boxes, mirror=settings.mirror, batch_size=16)
    captions = [prompts(config, CLASSES[label], [config.caption(CLASSES[label])], learned=True)[0] for label in labels]
    words = {name: config.classes[name].initializer for name in CLASSES}
    parts = training_images([encoded], torch.device("cpu"))
    tuner = FineTuner(pipe, settings, tokens, words, parts, captions, config.seed)
    for step in range(settings.steps):
        tuner.accumulate(step, range(settings.batch_size))
        tuner.apply(step)
        if step % 10 == 9:
            print(f"<!-- step {step + 1} of {settings.steps} -->", flush=True)
    return tuner.sample_pipe()


def prompts(config: Config, name: str, templates: list[str] | tuple[str, ...], learned: bool) -> list[str]:
    token = config.token(name) if learned and config.uses_tokens else config.classes[name].initializer
    return [fill(template, token=token, class_name=name, columns={}) for template in templates]


def drawn(pipe: Any, config: Config, boxes: list[ContentBox], guidance: float, learned: bool) -> np.ndarray:
    """uint8 [3 x DRAWN, side, side] by txt2img, the same seeds whatever the pipeline."""
    sampling = config.sampling.model_copy(update={"guidance_scale": guidance})
    sampler = Sampler(pipe, sampling, None, config.base.size, keep_txt2img=False)
    images = []
    for name in CLASSES:
        texts, specs = prompts(config, name, config.prompts(name), learned), []
        for i in range(DRAWN):
            seed, box = seed_for(config.seed, name, i, 0, "txt2img"), boxes[(i * 7) % len(boxes)]
            specs.append(ImageSpec(f"{name}-{i}", name, i, 0, texts[i % len(texts)], seed, seed, box))
        for at in range(0, DRAWN, sampling.batch_size):
            images += [image.image for image in sampler.draw(specs[at : at + sampling.batch_size])]
    return np.stack(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.5])
    options, flags = parser.parse_known_args()
    torch.set_num_threads(1)
    config = load_config(DEMO, flags)
    side = config.base.size
    extractor, judge = InceptionFeatures(find_weights()), trained_judge(side)

    def features(images: np.ndarray) -> np.ndarray:
        return np.concatenate([extractor(images[at : at + 16]) for at in range(0, len(images), 16)])

    reference, _, reference_labels = phantoms(REFERENCE, 40, side)
    wanted = features(reference)
    labels = np.repeat(np.arange(len(CLASSES)), DRAWN)

    def row(arm: str, images: np.ndarray, base: np.ndarray | None) -> np.ndarray:
        found, taken = features(images), predict(judge, represent(images, ARCHITECTURE)).argmax(-1)
        seen = ", ".join(str(int((taken[labels == label] == label).sum())) for label in range(len(CLASSES)))
        by_class = []
        for label in range(len(CLASSES)):
            by_class.append(f"{1000 * kid(found[labels == label], wanted[reference_labels == label]).value:.0f}")
        cells = [arm, f"{frechet(Moments.of(found), Moments.of(wanted)):.1f}"]
        cells += [f"{1000 * kid(found, wanted).value:.1f}", ", ".join(by_class), seen, ""]
        if base is not None:
            difference = kid_difference(found, base, wanted)
            low, high = (1000 * end for end in difference.interval or (np.nan, np.nan))
            cells[-1] = f"{1000 * difference.value:+.1f} [{low:.1f}, {high:.1f}]"
        print(f"| {' | '.join(cells)} |", flush=True)
        return found

    print(f"n = {len(labels)} an arm, reference {len(reference)}; flags: {' '.join(flags) or 'none'}\n")
    print(f"| arm | FID | KID x 1000 | KID by class ({', '.join(CLASSES)}) | seen of {DRAWN} | KID - base's |")
    print("|---|--:|--:|---|---|---|")
    images, boxes, train_labels = phantoms(TRAIN, 33, side)
    bases, pipe = {}, load_pipeline(config.base, dtype="float32")
    for guidance in options.guidance:
        bases[guidance] = row(f"base, guidance {guidance:g}", drawn(pipe, config, boxes, guidance, False), None)
    pipe = adapted(config, images, boxes, train_labels)
    for guidance in options.guidance:
        images = drawn(pipe, config, boxes, guidance, True)
        row(f"{config.adapters.method}, guidance {guidance:g}", images, bases[guidance])


if __name__ == "__main__":
    main()
