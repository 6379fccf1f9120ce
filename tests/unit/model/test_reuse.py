"""Deep features of the UNet are reused between steps."""

from typing import Any

import pytest
import torch

from busray.model.reuse import ReusingUnet
from tests.support.pipelines import tiny_pipeline


def given(batch: int, width: int, seed: int = 0) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed)
    text = torch.randn(batch, 77, width, generator=rng)
    return {"latents": torch.randn(batch, 8, 8, 8, generator=rng), "encoder_hidden_states": text}


@pytest.fixture
def unet() -> Any:
    return tiny_pipeline().unet


@torch.no_grad()
def test_deep_features_of_the_same_latents_give_the_same_prediction(unet: Any) -> None:
    reusing, same = ReusingUnet(unet, 2), given(2, unet.config.cross_attention_dim)
    (whole,) = reusing(time=500, **same)
    (last,) = reusing(time=500, **same)
    torch.testing.assert_close(last, whole)


@torch.no_grad()
def test_all_layers_are_computed_at_every_nth_call_and_for_other_images(unet: Any) -> None:
    counted: list[int] = []
    unet.mid_block.register_forward_hook(lambda module, args, result: counted.append(len(result)))
    reusing, width = ReusingUnet(unet, 3), unet.config.cross_attention_dim
    for i in range(7):
        reusing(time=500, **given(2, width, i))
    assert counted == [2, 2, 2]  # calls 0, 3 and 6
    reusing(time=500, **given(1, width))  # guidance ends
    assert counted[3:] == [1]
    reusing.begin()
    reusing(time=500, **given(1, width))
    assert counted[4:] == [1]


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_unet_stays_one_graph(unet: Any) -> None:
    reusing, same = ReusingUnet(unet, 2), given(1, unet.config.cross_attention_dim)
    unet.compile(fullgraph=True, dynamic=False, backend="eager")
    time = torch.tensor(500)
    (whole,) = reusing(time=time, **same)
    (last,) = reusing(time=time, **same)
    torch.testing.assert_close(last, whole)
    reusing(time=time, **same)
    assert reusing.calls == 1
