"""How many images a shard of a new part of the plan has: as many as take corpus.shard_seconds."""

from collections.abc import Callable

from busray.config import Config
from busray.corpus.ablation import unet_evaluations
from busray.corpus.arms import corpora, released_arm
from busray.corpus.plan import shard_size
from busray.layout import arm_prefix
from busray.records import Arm
from busray.run.record import Run
from busray.stages.plan import rate_of_records
from busray.stages.probe import probe_drawing
from busray.storage import Store
from busray.workers import Beat, Workers


class ShardSizes:
    """The sizes of new shards of one run's corpora. A probe is made once at most."""

    def __init__(self, run: Run, workers: Workers) -> None:
        self.run, self.workers = run, workers
        self.probed: dict[bool, float] = {}

    def of(self, refined: bool) -> Callable[[int], int]:
        """For extend_plan: missing images of a corpus -> images of a shard."""
        config = self.run.config

        def size(missing: int) -> int:
            batch_size, actors = config.sampling.batch_size, config.cluster.actors
            return shard_size(config.corpus, batch_size, actors, missing, lambda: self._seconds(refined))

        return size

    def _seconds(self, refined: bool) -> float:
        """Of drawing one image."""
        if not self.probed:
            known = recorded_seconds(self.run.config, self.run.store, self.workers.device, refined)
            if known is not None:
                return known
            self.probed = probed_seconds(self.run.config, self.workers)
        return self.probed[refined]


def recorded_seconds(config: Config, store: Store, device: str, refined: bool) -> float | None:
    """Seconds of drawing an image, by the records of the run's corpora on such a device; None
    without any. With or without refinement, images take as long as they have UNet evaluations."""
    wanted = unet_evaluations(config.sampling, config.refine if refined else None)
    found: dict[bool, float] = {}
    for prefix, corpus in corpora(store).items():
        arm = Arm.parse(prefix.removeprefix(arm_prefix("")) or released_arm(config))
        rate = rate_of_records(corpus, device)
        if rate is not None:
            had = unet_evaluations(config.sampling, config.refine if arm.refined else None)
            found.setdefault(arm.refined, rate.seconds * wanted / had)
    return found.get(refined, next(iter(found.values()), None))


def probed_seconds(config: Config, workers: Workers) -> dict[bool, float]:
    """Whether refined -> seconds of drawing an image, by one batch of each kind in a worker."""
    return workers.call("probe", 2, _probe, config, workers.device, kind="model")


def _probe(beat: Beat, config: Config, device: str) -> dict[bool, float]:
    def report(stage: str, done: int, total: int) -> None:
        beat(min(done, 1))

    rates, _ = probe_drawing(config, device, report)
    return {refined: rate.seconds for refined, rate in rates.items()}
