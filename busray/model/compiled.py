"""What torch.compile made, kept with the run: further workers load it in place of compiling again.

It is code, and torch reads it by pickle. Its digest is compared like that of any object, but
whoever may write into a run's store can so run code on its workers. `sampling.compile=false` loads
none of it.
"""

from collections.abc import Mapping
from typing import Any

from busray.identity import fingerprint
from busray.storage import Store

FOLDER = "compiled"


def compiled_key(about: Mapping[str, Any]) -> str:
    """about: all that the code is for: device, versions, networks, shapes, number format."""
    return f"{FOLDER}/{fingerprint(about)[:32]}.bin"


def load_compiled(store: Store, key: str) -> bool:
    """Hand the kept code to torch.compile; False where there is none. Damaged where it is not what
    was stored."""
    import torch

    if not store.exists(key):
        return False
    torch.compiler.load_cache_artifacts(store.read_checked(key))
    return True


def keep_compiled(store: Store, key: str) -> None:
    """Store what torch.compile made in this process; the first worker's stays."""
    import torch

    made = torch.compiler.save_cache_artifacts()
    if made is not None and not store.exists(key):
        store.put_checked(key, made[0])
