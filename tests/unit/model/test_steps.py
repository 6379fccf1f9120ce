"""The step loop: noise levels are the schedulers' own, nothing waits for the device, and guidance
works where it is wanted."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from busray.model.steps import (
    SCHEDULERS,
    Guidance,
    Padding,
    denoise,
    is_stochastic,
    noise_levels,
    noises_ahead,
    scheduler_for,
    unit_noise,
)
from tests.support.pipelines import loaded_pipeline, tiny_pipeline

SHAPE = (3, 8, 16, 16)


def scheduler(name: str, steps: int) -> Any:
    made = scheduler_for(name, loaded_pipeline().scheduler.config)
    made.set_timesteps(steps)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_noise_levels_are_those_of_the_schedulers_own_add_noise(name: str, dtype: torch.dtype) -> None:
    made = scheduler(name, 7)
    latents, noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    levels = noise_levels(made, dtype)
    assert len(levels) == len(made.timesteps)
    for timestep, (alpha, sigma) in zip(made.timesteps, levels, strict=True):
        theirs = made.add_noise(latents[None], noise[None], timestep[None])[0]
        assert torch.equal(alpha * latents + sigma * noise, theirs)


def shrink(given: torch.Tensor, time: Any, encoder_hidden_states: Any, return_dict: bool) -> tuple[torch.Tensor]:
    """A network that takes no time."""
    return (given * 0.3,)


class Copies(TorchDispatchMode):
    """Counts copies from the CPU to the device that has no values."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = [value for value in args if isinstance(value, torch.Tensor)]
        if isinstance(result, torch.Tensor) and result.is_meta and any(not value.is_meta for value in before):
            self.count += func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        return result


def copies_of(name: str, steps: int, unet: Any = shrink, width: int = 4) -> int:
    """Copies to the device in a whole loop. Its tensors have no values there (`meta`): whatever
    would have to read one, and so wait for a GPU, is an error."""
    latents, text = torch.empty(SHAPE, device="meta"), torch.empty(3, 77, width, device="meta")
    content = torch.empty((3, 1, 16, 16), dtype=torch.bool, device="meta")
    padding = Padding(content, torch.empty((1, *SHAPE[1:]), device="meta"), latents)
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    with Copies() as copies, torch.no_grad():
        guidance = Guidance(2.0, text, text, (0.5, 2.0))
        done = denoise(unet, scheduler(name, steps), latents, guidance, generators, padding)
    assert done.is_meta and done.shape == SHAPE
    return copies.count


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_the_loop_reads_nothing_back_from_the_device_and_copies_noise_alone_to_it(name: str) -> None:
    a_step = copies_of(name, 9) - copies_of(name, 8)
    if name == "unipc":
        assert a_step <= 6  # single numbers of its formula
    else:
        assert a_step == (1 if name.startswith("sde") else 0)


def test_the_unet_too_reads_nothing_back_and_gets_nothing_from_the_cpu() -> None:
    unet = tiny_pipeline().unet.to("meta")
    width = unet.config.cross_attention_dim
    assert copies_of("dpmsolver++", 2, unet, width) == copies_of("dpmsolver++", 2)


def test_a_loop_that_reads_from_the_device_would_be_an_error() -> None:
    def curious(given: Any, time: Any, **rest: Any) -> Any:
        return (given * float(time),)

    latents = torch.empty(SHAPE, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        denoise(curious, scheduler("dpmsolver++", 3), latents, Guidance(1.0, latents, None), [])


def test_noise_drawn_ahead_is_the_generators_own_in_their_order() -> None:
    expected_of = [torch.Generator().manual_seed(i) for i in range(3)]
    expected = [unit_noise((2, 4), expected_of) for _ in range(5)]
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    noises = list(noises_ahead((2, 4), generators, 5, torch.device("cpu")))
    assert len(noises) == 5 and all(map(torch.equal, noises, expected))
    # No further one was drawn
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(generators, expected_of, strict=True))


def test_a_stochastic_loop_gives_what_the_schedulers_own_noise_gives() -> None:
    text = torch.zeros(3, 77, 4)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    ours = denoise(shrink, scheduler("sde-dpmsolver++", 6), start, Guidance(1.0, text, None), generators)
    made, theirs = scheduler("sde-dpmsolver++", 6), start
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    for time in made.timesteps:
        theirs = made.step(theirs * 0.3, time, theirs, generator=generators, return_dict=False)[0]
    assert torch.equal(ours, theirs)


def test_a_scheduler_that_takes_anothers_place_is_not_taken_for_it() -> None:
    stochastic = scheduler("sde-dpmsolver++", 3)
    assert is_stochastic(stochastic)
    for name in sorted({*SCHEDULERS} - {"sde-dpmsolver++"}):
        assert not is_stochastic(scheduler_for(name, stochastic.config)), name


def test_guidance_works_between_its_noise_levels_alone_and_an_unguided_step_costs_half() -> None:
    batches = []

    def unet(given: Any, time: Any, encoder_hidden_states: Any, return_dict: bool) -> Any:
        batches.append(len(given))
        return (given * 0.3,)

    text, start = torch.zeros(3, 77, 4), torch.ones(SHAPE)
    made = scheduler("dpmsolver++", 12)
    levels = [float(sigma / alpha) for alpha, sigma in noise_levels(made, torch.float32)]
    denoise(unet, made, start, Guidance(2.0, text, text, (0.5, 2.0)), [])
    assert batches == [6 if 0.5 <= level <= 2.0 else 3 for level in levels]
    assert 0 < batches.count(6) < 12
    batches.clear()
    denoise(unet, scheduler("dpmsolver++", 12), start, Guidance(2.0, text, text), [])
    assert batches == [6] * 12
