"""What a study declares before its results, and that reruns keep to it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from busray.config_file import validate
from busray.layout import study_key
from busray.records import UserError, to_json
from busray.run.record import Run
from busray.stages.study import _declare
from busray.storage import Store

IDENTITY = "i" * 64
PRIMARY = {"metric": "macro_f1", "arm": "mixed@0.5", "against": "real"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def declare(store: Store, **changes: Any) -> None:
    study = {"primary": PRIMARY, "ratios": [0.5, 1.0], "seeds": 5, **changes}
    config = validate(
        {"name": "trial", "dataset": {"phantoms": {}}, "classes": {"benign": {"images": 4}}, "study": study}
    )
    _declare(cast(Run, SimpleNamespace(config=config, store=store)), {}, IDENTITY)


def train(store: Store) -> None:
    store.put_once(study_key(IDENTITY, "real", 0), to_json({}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": 10}, "study.seeds: 5 there, 10 now"),
        ({"ratios": [0.5]}, r"study.ratios: \[0.5, 1.0\] there, \[0.5\] now"),
        ({"ratios": [0.5, 1.0, 2.0]}, r"study.ratios: \[0.5, 1.0\] there, \[0.5, 1.0, 2.0\] now"),
        ({"primary": {**PRIMARY, "metric": "auc"}}, "study.primary.metric: 'macro_f1' there, 'auc' now"),
    ],
)
def test_another_design_than_the_declared_one_is_refused_and_that_one_may_run_again(
    store: Store, changes: dict[str, Any], says: str
) -> None:
    declare(store)
    train(store)
    with pytest.raises(UserError, match=f"{says}.*take the declared values back, or give another output"):
        declare(store, **changes)
    declare(store, ratios=[1.0, 0.5])  # in whatever order


def test_trainings_of_a_study_that_declared_nothing_are_not_gone_on_with(store: Store) -> None:
    train(store)
    with pytest.raises(UserError, match=r"study.ratios, study.seeds: .* did not declare them.*give another output"):
        declare(store)
