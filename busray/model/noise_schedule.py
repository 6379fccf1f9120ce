"""The noise schedule that adapters are trained for, where it is not their base's own.

Adapters must be drawn with the schedule that they were trained for. So adapter.json says under
`scheduler` what differs from the base's scheduler, by the names of diffusers' settings.
"""

from collections.abc import Mapping
from typing import Any

from busray.config import Adapters
from busray.model.inspect_base import PREDICTIONS
from busray.records import UserError

SCHEDULER = "scheduler"  # in adapter.json and in the adapters' record
PREDICTION, ZERO_SNR, SPACING = "prediction_type", "rescale_betas_zero_snr", "timestep_spacing"
VALUES: dict[str, tuple[Any, ...]] = {
    PREDICTION: PREDICTIONS,
    ZERO_SNR: (True, False),
    SPACING: ("leading", "trailing", "linspace"),
}
"""What `scheduler` may say."""


def changed_schedule(settings: Adapters, base: Mapping[str, Any]) -> dict[str, Any]:
    """What a training changes of its base's scheduler configuration; empty where nothing.

    UserError for a schedule that ends in pure noise without v-prediction.
    """
    wanted: dict[str, Any] = {PREDICTION: settings.prediction or _prediction(base)}
    if settings.zero_terminal_snr:
        # Other spacings leave out the last step, which is the one of pure noise.
        wanted |= {ZERO_SNR: True, SPACING: "trailing"}
    asked = settings.zero_terminal_snr or (settings.prediction and base.get(ZERO_SNR))
    if asked and wanted[PREDICTION] == "epsilon":
        raise UserError(
            "adapters.prediction: a schedule that ends in pure noise (zero terminal SNR) leaves nothing to learn "
            "where the network predicts the noise itself (epsilon): set adapters.prediction=v_prediction"
        )
    known = {PREDICTION: _prediction(base), ZERO_SNR: base.get(ZERO_SNR, False), SPACING: base.get(SPACING)}
    return {name: value for name, value in wanted.items() if known[name] != value}


def offered_schedule(
    metadata: Mapping[str, Any], settings: Adapters, base: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The same of adapters that exist: adapter.json says it, and of other software's the settings.

    UserError where both say something, and not the same.
    """
    if SCHEDULER not in metadata:
        # An older busray, which names the base, trained for the base's own schedule alone.
        return _agreed({}, settings, base, where) if "base" in metadata else changed_schedule(settings, base)
    found = metadata[SCHEDULER]
    if not isinstance(found, dict) or any(value not in VALUES.get(name, ()) for name, value in found.items()):
        known = ", ".join(VALUES)
        raise UserError(f"{where}: adapter.json's `{SCHEDULER}` is {found!r}: it may give {known} of diffusers")
    return _agreed(found, settings, base, where)


def _agreed(found: dict[str, Any], settings: Adapters, base: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What adapters need; UserError where the settings ask for another schedule."""
    needed, asked = found.get(PREDICTION, _prediction(base)), settings.prediction
    if asked not in (None, needed):
        raise UserError(f"{where}: trained for {needed}, but adapters.prediction is {asked}: leave it out")
    if settings.zero_terminal_snr and not found.get(ZERO_SNR, base.get(ZERO_SNR)):
        raise UserError(
            f"{where}: trained for a schedule that does not end in pure noise, but adapters.zero_terminal_snr is on: "
            "leave it out"
        )
    return found


def _prediction(base: Mapping[str, Any]) -> str:
    return base.get(PREDICTION, "epsilon")


def with_schedule(scheduler: Any, changed: Mapping[str, Any]) -> Any:
    """A scheduler with a changed schedule, from whose configuration samplers can be made."""
    if not changed:
        return scheduler
    import diffusers

    # SD v1.5's own PNDM knows no rescaled schedule.
    return diffusers.DDIMScheduler.from_config(scheduler.config, **changed)


def training_alphas(scheduler: Any) -> Any:
    """The share of signal that each timestep keeps [timesteps], to the last one.

    What samplers have of a rescaled schedule ends a little above zero, so that they can divide.
    """
    import diffusers

    trained: Any = diffusers.DDPMScheduler.from_config(scheduler.config)
    return trained.alphas_cumprod
