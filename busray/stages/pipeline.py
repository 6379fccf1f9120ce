"""The whole job in its order. Each stage resumes where an earlier run stopped."""

from busray.corpus.arms import arms_to_draw
from busray.corpus.commit import committed_shards
from busray.corpus.plan import pending, read_segments, shards
from busray.records import Figure, UserError
from busray.run.record import Run, timed
from busray.stages.card import write_card
from busray.stages.evaluate import evaluate
from busray.stages.finetune import finetune
from busray.stages.generate import generate_together
from busray.stages.lesions import geometry
from busray.stages.report import write_report
from busray.workers import Workers


def run_all(run: Run, workers: Workers) -> list[Figure]:
    """`busray run`: adapters, released corpus, arms, figures, report."""
    timed(run, "finetune", lambda: finetune(run, workers))
    generate_together(run, workers, [None, *arms_to_draw(run.config)])
    return measure(run, workers)


def evaluate_all(run: Run, workers: Workers) -> list[Figure]:
    """The arms besides the released corpus, all figures, the report."""
    # Arms that are columns of the released corpus are drawn already.
    generate_together(run, workers, arms_to_draw(run.config))
    return measure(run, workers)


def measure(run: Run, workers: Workers) -> list[Figure]:
    """All figures of what is drawn, and the report."""
    figures = timed(run, "evaluate", lambda: evaluate(run, workers))
    if run.config.evaluate.geometry:
        figures += timed(run, "geometry", lambda: geometry(run, workers))
    write_report(run, figures)
    write_card(run, workers.report)
    return figures


def check_finished(run: Run) -> None:
    """UserError where the released corpus lacks planned images, or wanted ones are not planned."""
    segments = read_segments(run.store)
    planned = dict.fromkeys(run.config.classes, 0)
    for segment in segments:
        if segment.class_name in planned:
            planned[segment.class_name] += segment.count
    missing = pending(shards(segments), committed_shards(run.store))
    short = [name for name, settings in run.config.classes.items() if settings.images > planned[name]]
    if missing or short:
        reason = f"{', '.join(short)}: fewer images planned"
        if missing:
            reason = f"{len(missing)} planned shards have no record"
        unfinished = f"the corpus in {run.store.url} is not finished ({reason})"
        raise UserError(f"output: {unfinished}: run `busray generate` first")
