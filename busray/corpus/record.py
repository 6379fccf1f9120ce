"""run.json: which corpus an output holds, and the version of all that is stored with it.

Written once. Another corpus under the same output is refused, and so is a newer stored format.
"""

from typing import Any

from busray import __version__
from busray.identity import fingerprint
from busray.layout import FORMAT, RUN
from busray.records import UserError, json_object, to_json
from busray.storage import Store


def claim_corpus(store: Store, identity: dict[str, Any]) -> str:
    """Write run.json, unless it is there, and return the fingerprint of the corpus.

    UserError where the output holds another corpus; it names each differing field.
    """
    digest = fingerprint(identity)
    stored = read_run(store)
    if stored is None:
        record = {"format": FORMAT, "fingerprint": digest, "identity": identity, "busray": __version__}
        store.put_checked(RUN, to_json(record))
        stored = read_run(store)  # another driver may have been first
        assert stored is not None
    if stored["fingerprint"] != digest:
        changed = differences(stored["identity"], identity)
        lines = "\n".join(f"  {key}: {change}" for key, change in changed.items())
        raise UserError(
            f"output: {store.url} holds another corpus:\n{lines}\ngive another output, or take the old settings back"
        )
    return digest


def stored_format(store: Store) -> int:
    """The format of the corpus's shards, as its run.json says it."""
    return (read_run(store) or {"format": FORMAT}).get("format", 1)


def read_run(store: Store) -> dict[str, Any] | None:
    """run.json as a dict, None where there is none. A run.json without `format` is of format 1.

    UserError where the format is newer than this busray can read; Damaged.
    """
    record = store.read_record_or_none(RUN, _run_of)
    if record is None:
        return None
    version = record.get("format", 1)
    if version not in range(1, FORMAT + 1):
        raise UserError(
            f"{store.url}: its {RUN} is of format {version}, written by busray {record.get('busray', 'unknown')}, and "
            f"busray {__version__} reads formats up to {FORMAT}: install that busray or a newer one"
        )
    return record


def _run_of(data: bytes) -> dict[str, Any]:
    record = json_object(data)
    # A newer format may have other fields; read_run refuses it.
    known = record.get("format", 1) in range(1, FORMAT + 1)
    if known and fingerprint(record["identity"]) != record["fingerprint"]:
        raise ValueError("it names no corpus, or its fingerprint is not that of its identity")
    return record


def differences(old: Any, new: Any) -> dict[str, str]:
    """The differing fields of two plain trees, such as {"sampling.steps": "4 there, 5 now"}."""
    return {key: f"{_short(there)} there, {_short(now)} now" for key, (there, now) in differing(old, new).items()}


def differing(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """The differing fields of two plain trees, such as {"sampling.steps": (4, 5)}; None for one
    that a tree does not have."""
    before, after = flatten(old), flatten(new)
    changes = {}
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            changes[key] = before.get(key), after.get(key)
    return changes


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists are values."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else key))
    return flat


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-12:]}"
