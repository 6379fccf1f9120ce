"""Looking at a base before work starts: do its parts belong together, can busray draw with it?

The configurations and the headers of the weights are enough, so no weights are loaded.
"""

from collections.abc import Mapping
from typing import Any

from busray.model.base_files import BaseFiles
from busray.model.weights import FLOATS

PREDICTIONS = ("epsilon", "v_prediction")
INPAINTING = {
    5: "a depth-to-image base, which also takes a depth map",
    7: "an upscaling base, which also takes a small image",
    8: "an image-editing base, which also takes an image",
    9: "an inpainting base, which also takes a mask and an image",
}
"""What a UNet with that many input channels for 4 latent channels is."""
EXAMPLES = 3  # that a message names


def kind_problems(files: BaseFiles) -> list[str]:
    """What of the configurations busray cannot draw with; empty where all is well."""
    unet, vae = files.configs.get("unet", {}), files.configs.get("vae", {})
    problems = []
    if unet and vae:
        problems += _latent_problems(unet, vae)
    if unet:
        problems += _unet_problems(unet)
    if "text_encoder" in files.configs:
        problems += _text_problems(files)
    if "scheduler" in files.configs:
        problems += _scheduler_problems(files.configs["scheduler"])
    for part, config in files.configs.items():
        if config.get("quantization_config"):
            problems.append(f"{part}/config.json: quantised weights, which busray does not load; take the full ones")
    return problems + _type_problems(files)


def _latent_problems(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> list[str]:
    takes, gives, latents = unet.get("in_channels", 4), unet.get("out_channels", 4), vae.get("latent_channels", 4)
    if takes == gives == latents:
        return []
    if gives == latents and takes in INPAINTING and latents == 4:
        return [f"unet/config.json: {takes} input channels for 4 latent channels: this is {INPAINTING[takes]}"]
    return [
        f"unet/config.json: {takes} channels in and {gives} out, but vae/config.json has {latents} latent channels: "
        "the parts are of different bases"
    ]


def _unet_problems(unet: Mapping[str, Any]) -> list[str]:
    problems = []
    if unet.get("time_cond_proj_dim") is not None:
        problems.append("unet/config.json: time_cond_proj_dim is set: a distilled base (LCM), which is drawn otherwise")
    if unet.get("class_embed_type") or unet.get("num_class_embeds"):
        problems.append("unet/config.json: class_embed_type is set: a base that takes class labels or a noise level")
    if unet.get("addition_embed_type") not in (None, "text"):
        kind = unet["addition_embed_type"]
        problems.append(
            f"unet/config.json: addition_embed_type is {kind!r}: a base of another kind (SDXL has text_time)"
        )
    if unet.get("encoder_hid_dim") is not None:
        problems.append("unet/config.json: encoder_hid_dim is set: a base that reads more than a text")
    return problems


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text encoder's own settings; older files hold those of all of CLIP."""
    inner = config.get("text_config")
    return inner if "hidden_size" not in config and isinstance(inner, dict) else config


def _text_problems(files: BaseFiles) -> list[str]:
    text, unet = text_config(files.configs["text_encoder"]), files.configs.get("unet", {})
    width, reads = text.get("hidden_size", 512), unet.get("cross_attention_dim", 1280)
    problems = []
    widths = set(reads) if isinstance(reads, list) else {reads}
    if unet and widths != {width}:
        problems.append(
            f"unet/config.json: cross_attention_dim is {reads}, but the text encoder gives {width} "
            "(text_encoder/config.json, hidden_size): the parts are of different bases"
        )
    rows = next((s[0] for n, s in files.shapes("text_encoder").items() if n.endswith("token_embedding.weight")), None)
    if rows is not None and (most := files.largest_token()) is not None and most >= rows:
        problems.append(
            f"tokenizer: its largest token is {most}, but the text encoder has {rows} embeddings: "
            "the parts are of different bases"
        )
    return problems


def _scheduler_problems(scheduler: Mapping[str, Any]) -> list[str]:
    problems = []
    kind, name = scheduler.get("prediction_type", "epsilon"), str(scheduler.get("_class_name", ""))
    if kind not in PREDICTIONS:
        problems.append(
            f"scheduler/scheduler_config.json: it predicts {kind!r}; busray knows {' and '.join(PREDICTIONS)}"
        )
    if "Flow" in name or "EDM" in name:
        problems.append(f"scheduler/scheduler_config.json: a {name} has another noise schedule than Stable Diffusion's")
    return problems


def _type_problems(files: BaseFiles) -> list[str]:
    """Weights of a type that is not loaded as it is, such as 8-bit floats."""
    problems = []
    for part, headers in files.headers.items():
        for name, header in headers.items():
            kinds = set()
            for tensor, stored in header.tensors.items():
                # position_ids are the integers 0 to 76, which older text encoders have.
                if len(stored.shape) > 1 and not tensor.endswith("position_ids"):
                    kinds.add(stored.dtype)
            kinds -= set(FLOATS)
            if kinds:
                file = f"{part}/{name}".lstrip("/")
                types = ", ".join(sorted(kinds))
                problems.append(f"{file}: weights of the type {types}; take the 16-bit ones")
    return problems


def shape_problems(files: BaseFiles) -> list[str]:
    """Weights that are missing, too many, or of another shape than the configurations say.

    The networks are built without memory for their weights (meta device), which imports torch.
    """
    problems = []
    for part in ("unet", "vae", "text_encoder"):
        try:
            wanted = built_shapes(part, files.configs[part])
        except Exception as error:  # a configuration can be wrong in many ways, all with one fix
            first = (str(error).splitlines() or [repr(error)])[0]
            problems.append(f"{files.folder / part / 'config.json'} is no configuration of diffusers: {first}")
            continue
        try:
            there = {current_name(part, name): shape for name, shape in files.shapes(part).items()}
        except (KeyError, IndexError) as error:  # diffusers' conversion misses a tensor
            problems.append(f"{part}: a weight is missing: {error}")
            continue
        problems += [f"{part}: {problem}" for problem in compare(part, wanted, there)]
    return problems


def built_shapes(part: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a network's weights, as its configuration has them."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        if part == "text_encoder":
            settings = {key: value for key, value in text_config(config).items() if not key.startswith("_")}
            network: Any = CLIPTextModel(CLIPTextConfig(**settings))
        else:
            network = (UNet2DConditionModel if part == "unet" else AutoencoderKL).from_config(dict(config))
    return {current_name(part, name): tuple(weight.shape) for name, weight in network.named_parameters()}


OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names in autoencoders that were saved before 2023, such as Stable Diffusion v1.5's."""


def current_name(part: str, name: str) -> str:
    """A weight's name without what differs between versions of diffusers and transformers."""
    if part == "text_encoder":
        return name.removeprefix("text_model.")
    if part == "vae" and ".attentions." in name:
        *path, layer, kind = name.split(".")
        return ".".join([*path, OLD_ATTENTION.get(layer, layer), kind])
    return name


def compare(part: str, wanted: Mapping[str, tuple[int, ...]], there: Mapping[str, tuple[int, ...]]) -> list[str]:
    """How a file's tensors differ from what the network needs, in a sentence each."""
    problems = []
    missing = [name for name in wanted if name not in there]
    if missing:
        problems.append(f"{len(missing)} of {len(wanted)} weights are missing: {some(missing)}")
    if part != "text_encoder":  # beside a text encoder CLIP's other half may lie, which is not loaded
        extra = [name for name in there if name not in wanted]
        if extra:
            problems.append(f"{len(extra)} weights are of no layer of config.json: {some(extra)}")
    differing = [name for name in wanted if name in there and wanted[name] != there[name]]
    if differing:
        shapes = [f"{name} {list(there[name])}, not {list(wanted[name])}" for name in differing]
        problems.append(f"{len(differing)} weights have another shape than config.json says: {some(shapes)}")
    return problems


def some(names: list[str]) -> str:
    """The first few of these names, for a message."""
    return ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")
