"""The whole job in its order. Each stage goes on where an earlier run stopped."""

from busray.cluster.session import session
from busray.corpus.arms import arms_to_draw
from busray.corpus.commit import committed_shards
from busray.corpus.plan import pending, read_segments, shards
from busray.records import Figure, UserError
from busray.run.record import Run, timed
from busray.stages.evaluate import evaluate
from busray.stages.finetune import finetune
from busray.stages.generate import generate
from busray.stages.lesions import geometry
from busray.stages.report import write_report


def run_all(run: Run) -> list[Figure]:
    """Adapters, released corpus, arms, evidence, report: `busray run`."""
    with session(run.config.cluster, run.log_file):
        timed(run, "finetune", lambda: finetune(run))
        timed(run, "generate", lambda: generate(run))
        for arm in arms_to_draw(run.config):
            timed(run, f"generate {arm}", lambda arm=arm: generate(run, arm))
        figures = measure(run)
    write_report(run, figures)
    return figures


def refuse_unfinished(run: Run) -> None:
    """UserError where the released corpus lacks images that are wanted of it, so that figures would be of fewer."""
    segments = read_segments(run.store)
    planned = {name: sum(s.count for s in segments if s.class_name == name) for name in run.config.classes}
    missing = pending(shards(segments), committed_shards(run.store))
    short = [name for name, settings in run.config.classes.items() if settings.images > planned[name]]
    if missing or short:
        what = (
            f"{len(missing)} planned shards have no record" if missing else f"{', '.join(short)}: fewer images planned"
        )
        raise UserError(f"output: the corpus in {run.store.url} is not finished ({what}): run `busray generate` first")


def measure(run: Run) -> list[Figure]:
    """All figures of the run's arms."""
    figures = timed(run, "evaluate", lambda: evaluate(run))
    return figures + timed(run, "geometry", lambda: geometry(run)) if run.config.evaluate.geometry else figures
