"""run.json: which corpus an output holds. Written once; another corpus under the same output is refused."""

import json
from typing import Any

from busray import __version__
from busray.identity import fingerprint
from busray.layout import RUN
from busray.records import UserError, to_json
from busray.storage import Store


def open_run(store: Store, identity: dict[str, Any]) -> str:
    """The fingerprint of the corpus; UserError naming each differing field where the output holds another one."""
    ours = fingerprint(identity)
    record = {"fingerprint": ours, "identity": identity, "busray": __version__}
    if store.read_or_none(RUN) is None:
        store.put_once(RUN, to_json(record))
    stored = json.loads(store.read(RUN))
    if stored["fingerprint"] != ours:
        changed = differences(stored["identity"], identity)
        lines = "\n".join(f"  {key}: {change}" for key, change in changed.items())
        raise UserError(
            f"output: {store.url} holds another corpus:\n{lines}\ngive another output, or take the old settings back"
        )
    return ours


def differences(old: Any, new: Any) -> dict[str, str]:
    """Each differing field of two plain trees: {"sampling.steps": "4 there, 5 now"}."""
    before, after = flatten(old), flatten(new)
    return {
        key: f"{_short(before.get(key))} there, {_short(after.get(key))} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


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
