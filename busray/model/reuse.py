"""Reuse of a UNet's deep features between steps (DeepCache: Ma, Fang and Wang 2024, arXiv
2312.00858). What the deep layers make changes little from step to step, and they take most of the
time."""

from typing import Any

import torch
from torch import Tensor


class ReusingUnet:
    """Called as the UNet that it holds. Every n-th call computes all layers; those between compute
    the first convolution and the last layer, on the deep features of the call before.

    A call with another batch (guidance begins or ends) computes all layers too.
    """

    def __init__(self, unet: Any, every: int) -> None:
        """every: n. The UNet is not compiled yet, or was given to keep_deep_features() before."""
        keep_deep_features(unet)
        self.unet, self.every = unet, every
        self.calls = 0  # since all layers were computed; 0: none yet

    def begin(self) -> None:
        """Forget the features: the next call is of other images."""
        self.calls = 0
        self.unet.deep_features = None

    def __call__(
        self, latents: Tensor, time: Any, encoder_hidden_states: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """The UNet's prediction for latents [b, c, h, w], as a tuple of one."""
        deep = self.unet.deep_features
        if deep is not None and len(deep) == len(latents) and 0 < self.calls < self.every:
            self.calls += 1
            return (_last_layer(self.unet, latents, time, encoder_hidden_states, deep),)
        self.calls = 1
        return self.unet(latents, time, encoder_hidden_states=encoder_hidden_states, return_dict=False)


def keep_deep_features(unet: Any) -> None:
    """Have each call of the UNet leave its deep features [b, c, h, w] in `unet.deep_features`."""
    if hasattr(unet, "deep_features"):
        return
    unet.deep_features = None
    beside = unet.config.block_out_channels[0]  # channels of the first convolution, which follow

    def keep(layer: Any, given: tuple[Tensor, ...]) -> None:
        unet.deep_features = given[0][:, : given[0].shape[1] - beside]

    unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(keep)


def _last_layer(unet: Any, latents: Tensor, time: Any, text: Tensor, deep: Tensor) -> Tensor:
    """UNet2DConditionModel.forward (diffusers 0.42) without what lies between the first convolution
    and the last layer."""
    embedding = unet.time_embedding(unet.get_time_embed(sample=latents, timestep=time), None)
    added = unet.get_aug_embed(emb=embedding, encoder_hidden_states=text, added_cond_kwargs={})
    if added is not None:
        embedding = embedding + added
    last = unet.up_blocks[-1]
    hidden = last.resnets[-1](torch.cat([deep, unet.conv_in(latents)], dim=1), embedding)
    if getattr(last, "has_cross_attention", False):
        hidden = last.attentions[-1](hidden, encoder_hidden_states=text, return_dict=False)[0]
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
