"""Rates by a probe: one batch is drawn, and one measured by each extractor, on this machine.

Nothing is stored. Adapters are not loaded: they are fused into the base and cost nothing more.
"""

import time

import numpy as np

from busray.config import Config, template_fields
from busray.corpus.cost import Rate
from busray.corpus.draw import device_name
from busray.corpus.encode import Row, encode_parquet
from busray.data.templates import fill
from busray.records import ContentBox, ImageSpec, UserError
from busray.vision.extractors import find_extractors
from busray.workers import Report

WARM_UP_STEPS = 2  # of a batch drawn first, so that what is loaded at the first use is not measured


def probe_device(config: Config) -> str:
    """`cuda` or `cpu`, as the actors compute. UserError where they need a GPU and none is here."""
    if not config.cluster.gpus:
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "--probe: cluster.gpus_per_actor is above 0, and this machine has no GPU that torch can use: run it on "
            "a machine like the workers, or take the rates of an earlier run (--rates=RUN)"
        )
    return "cuda"


def probe_drawing(config: Config, device: str, report: Report) -> tuple[dict[bool, Rate], np.ndarray]:
    """(whether refined -> rate of drawing, drawn images uint8 [n, s, s]); one batch of each kind.

    Both kinds are drawn where the settings refine, since arms without refinement may be drawn too.
    """
    import torch

    from busray.model.base import load_pipeline
    from busray.model.device import choose, prepare
    from busray.model.sample import Sampler, draw_shard

    report("probe", 0, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.cluster.threads)
    try:
        computing = choose(config.base.dtype, config.sampling.compile, device)
        pipe = load_pipeline(config.base, device, computing.dtype)
        prepare(pipe, computing)
        sampling, specs = config.sampling, _specs(config)
        short = sampling.model_copy(update={"steps": WARM_UP_STEPS})
        Sampler(pipe, short, None, config.base.size, False).draw(specs)
        report("probe", 1, 3)
        rates: dict[bool, Rate] = {}
        images = np.empty(0)
        for refine in (None, config.refine) if config.refine else (None,):
            sampler = Sampler(pipe, sampling, refine, config.base.size, config.corpus.keep_txt2img)
            started = time.perf_counter()
            drawn = draw_shard(sampler, specs, lambda n: None)
            seconds = time.perf_counter() - started
            rows = [Row(image.spec, image.image, image.txt2img) for image in drawn]
            size = len(encode_parquet(rows, {"fingerprint": "", "synthetic": True})) / len(rows)
            source = f"a probe of {len(specs)} images on {device_name(device)}"
            rates[refine is not None] = Rate(seconds / len(specs), source, size)
            images = np.stack([image.image for image in drawn])
        report("probe", 2, 3)
        return rates, images
    finally:
        torch.set_num_threads(threads)


def probe_extractors(config: Config, images: np.ndarray, device: str, report: Report) -> dict[str, Rate]:
    """evaluate.extractors -> rate, of evaluate.batch_size images like the drawn ones, uint8
    [n, s, s]. UserError where weights are missing."""
    import torch

    n, size = config.evaluate.batch_size, config.base.size
    batch = np.resize(images, (n, size, size))
    boxes = [ContentBox(0, 0, size, size)] * n
    rates: dict[str, Rate] = {}
    extractors = find_extractors(config.evaluate)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.cluster.threads)
    try:
        for kind, extractor in zip(config.evaluate.extractors, extractors.values(), strict=True):
            here = device if extractor.weights is not None else "cpu"  # texture is plain arithmetic
            compute = extractor.load(here)
            compute(batch[:1], boxes[:1])
            started = time.perf_counter()
            features = compute(batch, boxes)
            seconds = time.perf_counter() - started
            source = f"a probe of {n} images on {device_name(here)}"
            # Its size on the disk is known without a probe, or was seen here.
            rates[kind] = Rate(seconds / n, source, 4.0 * features.shape[1])
    finally:
        torch.set_num_threads(threads)
    report("probe", 3, 3)
    return rates


def _specs(config: Config) -> list[ImageSpec]:
    """One batch of the first class's prompts, with plain words for tokens and columns."""
    name, settings = next((name, c) for name, c in config.classes.items() if c.images)
    prompts, size = config.prompts(name), config.base.size
    specs: list[ImageSpec] = []
    for index in range(config.sampling.batch_size):
        template = prompts[index % len(prompts)]
        columns = {column: column for column in template_fields(template) - {"token", "class"}}
        prompt = fill(template, token=settings.initializer, class_name=name, columns=columns)
        box = ContentBox(0, 0, size, size)
        specs.append(ImageSpec(f"probe-{index}", name, index, 0, prompt, index, index, box, {}))
    return specs
