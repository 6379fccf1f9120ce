"""Messages about settings that are refused: what is wrong, and what busray's own setting is."""

import difflib
import re
from typing import Any, get_args

from pydantic import BaseModel

from busray.config import Config
from busray.places import credentials_in

BOUNDS = {
    "greater_than_equal": "at least",
    "greater_than": "more than",
    "less_than_equal": "at most",
    "less_than": "less than",
    "multiple_of": "a multiple of",
}
"""Kind of pydantic's error -> how its bound is said."""
LONGEST_QUOTE = 80
KIND_TRIED = re.compile(r"literal\[|constrained-|function-")

MAY_BE_NULL = ("refine", "gate", "geometry", "phantoms", "primary")
"""Groups of settings that can be switched off."""
ACCUMULATE = "adapters.batch_size is the whole batch; adapters.micro_batch_size is what is done at once"
OWN_NAMES = {
    "negative_prompt": "sampling.negative_prompt", "negative": "sampling.negative_prompt",
    "cfg_scale": "sampling.guidance_scale", "cfg": "sampling.guidance_scale", "guidance": "sampling.guidance_scale",
    "sampler": "sampling.scheduler", "sampler_name": "sampling.scheduler", "noise_scheduler": "sampling.scheduler",
    "num_inference_steps": "sampling.steps", "denoising_strength": "refine.strength",
    "network_dim": "adapters.rank", "lora_rank": "adapters.rank", "dim": "adapters.rank", "r": "adapters.rank",
    "network_alpha": "adapters.alpha", "lora_alpha": "adapters.alpha",
    "scale": "sampling.lora_scale", "lora_scale": "sampling.lora_scale", "lora_weight": "sampling.lora_scale",
    "network_multiplier": "sampling.lora_scale", "network_weights": "adapters.path",
    "lr": "adapters.learning_rate", "unet_lr": "adapters.learning_rate",
    "embedding_lr": "adapters.token_learning_rate", "lr_warmup_steps": "adapters.warmup",
    "lr_scheduler": "adapters.learning_rate_schedule",
    "text_encoder_lr": "adapters.learning_rate, with adapters.text_encoder=true",
    "train_text_encoder": "adapters.text_encoder", "max_train_steps": "adapters.steps", "train_steps": "adapters.steps",
    "epochs": "adapters.steps, counted in optimiser steps", "train_batch_size": "adapters.batch_size",
    "max_train_epochs": "adapters.steps, counted in optimiser steps", "min_snr_gamma": "adapters.snr_gamma",
    "use_ema": "adapters.ema", "flip_aug": "adapters.mirror", "random_flip": "adapters.mirror",
    "save_every_n_steps": "adapters.checkpoint_every", "gpus": "cluster.gpus_per_actor",
    "resolution": "base.size", "width": "base.size: images are square", "height": "base.size: images are square",
    "vae": "base.vae", "clip_skip": "the text encoder is used to its last layer",
    "mixed_precision": "base.dtype for drawing, adapters.precision for training",
    "gradient_accumulation_steps": ACCUMULATE, "use_dora": "adapters.dora", "use_rslora": "adapters.rslora",
    "prediction_type": "adapters.prediction", "v_parameterization": "adapters.prediction=v_prediction",
    "rescale_betas_zero_snr": "adapters.zero_terminal_snr", "allow_tf32": "TF32 is allowed on a GPU",
    "precision": "base.dtype", "fp16": "base.dtype=float16",
    "pretrained_model_name_or_path": "base.path", "model": "base.path", "checkpoint": "base.path", "ckpt": "base.path",
    "output_dir": "output", "out": "output", "train_data_dir": "dataset.path", "data_dir": "dataset.path",
    "data": "dataset.path", "placeholder_token": "classes.<class>.token",
    "initializer_token": "classes.<class>.initializer", "instance_prompt": "classes.<class>.caption",
    "prompt": "classes.<class>.prompts, a list", "num_images": "classes.<class>.images",
    "batch_count": "classes.<class>.images", "n_iter": "classes.<class>.images", "patients": "dataset.metadata",
}  # fmt: skip
"""Name of a setting of other programs -> busray's own setting, or a sentence."""

OWN_VALUES = {
    "fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "full": "float32", "16": "float16",
    "euler a": "euler, which is not ancestral", "euler_a": "euler, which is not ancestral",
    "k_euler": "euler", "k_euler_a": "euler, which is not ancestral",
    "dpm++ 2m": "dpmsolver++", "dpm++ 2m karras": "dpmsolver++; Karras' spacing is not offered",
    "dpm++ sde": "sde-dpmsolver++", "dpm++ sde karras": "sde-dpmsolver++; Karras' spacing is not offered",
    "dpm++ 2m sde": "sde-dpmsolver++", "dpm++ 2m sde karras": "sde-dpmsolver++; Karras' spacing is not offered",
    "dpm": "dpmsolver++", "dpmpp_2m": "dpmsolver++", "dpmpp_2m_sde": "sde-dpmsolver++", "dpm++": "dpmsolver++",
    "ddpm": "ddim", "pndm": "unipc", "plms": "unipc", "lms": "euler", "heun": "euler",
    "crop": "centre", "center": "centre", "pad": "letterbox", "resize": "stretch",
}  # fmt: skip
"""Value of other programs, in small letters -> the one of busray that comes nearest."""


def explain(item: Any) -> str:
    """One of pydantic's errors as `<dotted name>: <what is wrong> (given: <value>)`."""
    # Where several kinds of value are allowed, pydantic also names the kind that it tried.
    location = shortened(".".join(str(part) for part in item["loc"] if not KIND_TRIED.match(str(part))))
    if item["type"] == "extra_forbidden":
        return f"{location or repr('')}: no such setting; {_nearest_setting(item['loc'])}"
    message = _message(item)
    if not location:
        return message
    value = {True: "true", False: "false", None: "null"}.get(item["input"]) if _is_word(item["input"]) else None
    value = value or repr(item["input"])
    if item["type"] == "missing" or credentials_in(value):  # a secret is not repeated in a message
        return f"{location}: {message}"
    return f"{location}: {message} (given: {shortened(value)})"


def _is_word(value: Any) -> bool:
    """Whether YAML writes it as a word: true, false or null."""
    return value is None or isinstance(value, bool)


def shortened(value: str) -> str:
    """A value for a message, without the middle of a long one."""
    if len(value) <= LONGEST_QUOTE:
        return value
    return f"{value[: LONGEST_QUOTE // 2]} ... {value[-LONGEST_QUOTE // 4 :]}"


def setting_names() -> list[str]:
    """Dotted names of all settings and groups; `<class>` stands for any class's name."""
    return _names(Config, "")


def _names(model: type[BaseModel], prefix: str) -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        group = group_in(field.annotation)
        if group is not None:
            names += _names(group, f"{prefix}{name}.<class>." if name == "classes" else f"{prefix}{name}.")
    return names


def group_in(annotation: Any) -> type[BaseModel] | None:
    """The group of settings inside `X`, `X | None` or `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        group = group_in(inner)
        if group is not None:
            return group
    return None


def _nearest_setting(location: tuple[Any, ...]) -> str:
    leaf = str(location[-1])
    own = OWN_NAMES.get(leaf.lower().replace("-", "_"))
    if own:
        return f"busray's own is {own}" if re.match(r"[a-z_]+[.=]|output$", own) else own
    here = sorted(_fields_at(location[:-1]))
    close = difflib.get_close_matches(leaf.replace("-", "_"), here, n=1)
    if close:
        return f"did you mean {close[0]}?"
    everywhere = setting_names()
    same = [name for name in everywhere if name.rpartition(".")[2] == leaf.replace("-", "_")]
    if same:
        return f"did you mean {' or '.join(same[:3])}?"
    if len(location) == 1:
        leaves = {name.rpartition(".")[2]: name for name in everywhere}
        near = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75)
        if near:
            return f"did you mean {leaves[near[0]]}?"
    return f"known here: {', '.join(here)}"


def _fields_at(location: tuple[Any, ...]) -> set[str]:
    """Names of the settings in the group at this location."""
    model: Any = Config
    for part in location:  # a class's name (a key of `classes`) is no field: the group stays
        if part in model.model_fields:
            model = group_in(model.model_fields[part].annotation) or model
    return set(model.model_fields)


def _message(item: Any) -> str:
    """What is wrong with a value, and what to write where the kind of the value shows it."""
    kind, given, message = item["type"], item["input"], item["msg"].removeprefix("Value error, ")
    name = str(item["loc"][-1]) if item["loc"] else ""
    if kind == "literal_error" and isinstance(given, str):
        allowed = re.findall(r"'([^']*)'", str(item["ctx"]["expected"]))
        own = OWN_VALUES.get(given.lower().strip())
        if own and own.split(",")[0].split(";")[0] in allowed:
            return f"{message}; the nearest is {own}"
        close = difflib.get_close_matches(given.lower(), allowed, n=1)
        return f"{message}; did you mean {close[0]}?" if close else message
    if kind == "string_type" and isinstance(given, dict | list):
        return "a text is expected, and one with braces, brackets or a colon needs quotes"
    if kind == "string_type":
        return "a text is expected" + ("" if given is None else ": write it in quotes")
    if kind in ("model_type", "model_attributes_type", "dict_type") and name in MAY_BE_NULL:
        return f"a group of settings is expected, such as {name}: {{...}}, or null for none"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"a group of settings is expected, such as {name}: {{...}}"
    if kind == "tuple_type":
        return f"a list is expected, such as {name}: [...]"
    if kind == "too_short":
        return "at least 1 value is needed"
    if kind == "too_long":
        return f"at most {item['ctx']['max_length']} values are allowed"
    if kind in ("int_type", "int_parsing", "int_from_float"):
        return "a whole number is expected"
    if kind in ("float_type", "float_parsing"):
        return "a number is expected"
    if kind in BOUNDS:
        bound = next(iter(item["ctx"].values()))
        return f"{BOUNDS[kind]} {bound if isinstance(bound, int) else f'{bound:g}'} is expected"
    if kind == "bool_parsing":
        return "true or false is expected"
    return message
