"""From a folder of labelled breast-ultrasound images to a synthetic corpus with its evidence.

The functions of `busray.api` are here too, each loaded at its first use: `import busray` loads
nothing, and `busray.check("DATA")` what it needs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from busray.api import (
        ablate,
        audit,
        check,
        evaluate,
        finetune,
        generate,
        plan,
        read_config,
        reproduce,
        run_job,
        status,
        study,
        verify,
    )

__version__ = "0.1.0"

__all__ = [
    "ablate", "audit", "check", "evaluate", "finetune", "generate", "plan", "read_config", "reproduce", "run_job",
    "status", "study", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'busray' has no attribute {name!r}")
    from busray import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
