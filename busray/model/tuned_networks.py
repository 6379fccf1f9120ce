"""Networks of the base that training changed whole: the autoencoder with a tuned decoder, the UNet.

Each lies in a folder of the adapters that is called as diffusers calls it, so that plain diffusers
loads it with from_pretrained(folder, subfolder=...).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save

from busray.model.base_files import BaseFiles
from busray.model.inspect_base import built_shapes, some
from busray.records import UserError


def weights_file(part: str) -> str:
    return f"{part}/diffusion_pytorch_model.safetensors"


def settings_file(part: str) -> str:
    return f"{part}/config.json"


def network_files(part: str, network: Any) -> dict[str, bytes]:
    """file -> bytes of a network's folder, which diffusers loads; half precision.

    part: `unet` or `vae`.
    """
    # A LoRA's or an average's names are not in the state dict of a network that learned whole.
    state = {name: tensor.detach().cpu().half().contiguous() for name, tensor in sorted(network.state_dict().items())}
    return files_of_weights(part, save(state), network)


def files_of_weights(part: str, weights: bytes, network: Any) -> dict[str, bytes]:
    """file -> bytes of a network of this one's architecture with these weights."""
    return {weights_file(part): weights, settings_file(part): network.to_json_string().encode()}


def load_network(part: str, network: Any, folder: Path) -> None:
    """Put the weights of an adapters' folder into a network.

    RuntimeError where they are the base's, in half precision, or do not fit.
    """
    path = folder / weights_file(part)
    state = load_file(path)
    before = {name: tensor.detach().half() for name, tensor in network.state_dict().items()}
    network.load_state_dict(state)
    if all(torch.equal(tensor, state[name].half().to(tensor.device)) for name, tensor in before.items()):
        raise RuntimeError(f"{path}: loading it changed nothing")


def offered_network(part: str, called: str, folder: Path, base: BaseFiles, where: str) -> dict[str, bytes]:
    """The files of a network in this folder of adapters; UserError where it does not fit the base.

    called: what a person calls it.
    """
    weights, settings = weights_file(part), settings_file(part)
    for name in (weights, settings):
        if not (folder / name).is_file():
            raise UserError(f"{where}: {name} is missing; give both files of {part}/, or remove that folder")
    files = {name: (folder / name).read_bytes() for name in (weights, settings)}
    try:
        state: Mapping[str, torch.Tensor] = load(files[weights])
    except SafetensorError as error:
        raise UserError(f"{where}: {weights} is damaged: {error}") from error
    wanted = built_shapes(part, base.configs[part])
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != wanted:
        other = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise UserError(f"{where}: {weights} does not fit this base's {called}: {some(other)} are not as there")
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise UserError(f"{where}: {weights} is damaged: NaN or infinity in {some(broken)}")
    return files
