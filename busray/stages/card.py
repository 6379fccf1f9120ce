"""README.md of a run: the data-set card, whose header tells readers where images and labels are.

It is made whenever a corpus or its report is finished, so that `load_dataset(RUN)` works, and again
by `busray card` with what the user states of licence, source, ethics and contact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from busray.config import Card, Config
from busray.corpus.columns import class_names, flat_columns
from busray.corpus.commit import read_commit
from busray.corpus.index import publish_index
from busray.corpus.manifest import published_rows
from busray.corpus.record import read_run, stored_format
from busray.identity import fingerprint_rows
from busray.layout import CARD, CARD_STATEMENTS, DATASET, REPORT_JSON
from busray.model.checkpoints import read_adapters
from busray.records import DataSet, Shard, json_object, to_json
from busray.report.card import MARK, data_card
from busray.report.hub import files_of_run
from busray.run.record import Run
from busray.stages.report import described_dataset, described_run
from busray.storage import Store
from busray.workers import Report

Rows = Sequence[Mapping[str, Any]]


def write_card(run: Run, report: Report) -> None:
    """Make README.md, and the index of a PNG corpus, from what is recorded. A README.md of the
    user's own stays, which is reported."""
    shards = list(published_rows(run.store).values())
    if is_foreign(run.store):
        report(f"card: {run.store.url}/{CARD} is not busray's, and stays as it is", 0, 0)
    elif shards:
        described = run.store.read_record_or_none(REPORT_JSON, json_object) or _unmeasured(run, shards)
        put_card(run.store, described, run.config, shards)


def put_card(store: Store, described: dict[str, Any], config: Config, shards: Rows) -> Config:
    """Make README.md and a PNG corpus's index. Returns the settings with all that is stated.

    described: the content of report.json. shards: rows of the manifest.
    """
    config, columns = with_statements(store, config), None
    if config.corpus.format == "png":
        dataset = store.read_record(DATASET, DataSet.from_json)
        columns = flat_columns(config, dataset, class_names(shards))
        publish_index(store, shards, columns)
    files = files_of_run(stored_format(store), shards, columns)
    store.replace(CARD, data_card(described, config, shards, fingerprint_rows(shards), files).encode())
    return config


def keep_statements(store: Store, config: Config) -> None:
    """Keep what flags of `busray card` state, for each card that is made later."""
    store.replace(CARD_STATEMENTS, to_json(_stated(store, config)))


def with_statements(store: Store, config: Config) -> Config:
    """The settings, with what was once kept where they themselves state nothing."""
    return config.model_copy(update={"card": Card.model_validate(_stated(store, config))})


def _stated(store: Store, config: Config) -> dict[str, str]:
    kept = store.read_record_or_none(CARD_STATEMENTS, json_object) or {}
    return kept | {name: value for name, value in config.card if value is not None}


def is_foreign(store: Store) -> bool:
    """Whether a README.md is there that busray did not write."""
    there = store.read_or_none(CARD)
    return there is not None and MARK.encode() not in there


def _unmeasured(run: Run, shards: Rows) -> dict[str, Any]:
    """What report.json has for a card, before anything is measured."""
    record, first = read_adapters(run.store), shards[0]
    execution = read_commit(run.store, Shard(first["class"], first["first"], first["count"])).execution
    described = {
        **described_run(run),
        "fingerprint": (read_run(run.store) or {})["fingerprint"],
        "adapters": record.to_dict() if record else {},
        "execution": asdict(execution),
    }
    corpus = {"committed": sum(row["rows"] for row in shards)}
    return {"run": described, "dataset": described_dataset(run), "corpus": corpus, "figures": []}
