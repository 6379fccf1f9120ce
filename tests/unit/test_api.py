"""`import busray` gives the functions behind the commands, each loaded at its first use."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import busray
from busray import api
from busray.records import UserError
from tests.support.paths import ROOT
from tests.support.pinned_run import unpack

TREE = {"dataset": {"phantoms": {"images": 12}}, "classes": {"benign": {}, "malignant": {}}}


def test_every_function_is_typed_and_documented_and_named_at_the_top() -> None:
    functions = [
        name for name, value in vars(api).items() if inspect.isfunction(value) and value.__module__ == api.__name__
    ]
    public = sorted(name for name in functions if not name.startswith("_"))
    assert public == sorted(busray.__all__) and set(public) <= set(dir(busray))
    for name in public:
        function = getattr(busray, name)
        assert function is getattr(api, name) and function.__doc__
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values()), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = busray.nothing


def test_importing_busray_loads_no_other_module_of_it() -> None:
    code = "import sys, busray; print(*[m for m in sys.modules if m.startswith('busray.')], 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_settings_override_a_dictionary_a_config_and_a_file(tmp_path: Path) -> None:
    changes = {
        "sampling.steps": 7,
        "refine.strength": 0.4,
        "corpus.gate": None,
        "base.path": "tiny",
        "ablate.strengths": [0.2, 0.4],
    }
    found = busray.read_config(TREE, changes)
    assert (found.sampling.steps, found.corpus.gate, found.ablate.strengths) == (7, None, (0.2, 0.4))
    again = busray.read_config(found, {"output": tmp_path / "runs"})
    assert again.sampling.steps == 7 and again.output == str(tmp_path / "runs")
    assert TREE["classes"] == {"benign": {}, "malignant": {}}  # not changed by reading it
    file = tmp_path / "my.yaml"
    file.write_text("dataset: {phantoms: {images: 12}}\nclasses: {benign: {}, malignant: {}}\n")
    assert busray.read_config(file, {"sampling.steps": 7}).name == "my"
    with pytest.raises(UserError, match="stepz"):
        busray.read_config(TREE, {"sampling.stepz": 7})


def test_a_finished_run_is_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = unpack(tmp_path)
    results = busray.verify(store.url)
    assert "" in results and all(not result.problems for result in results.values())
    assert busray.status(store.url).to_dict()["corpora"]
    assert capfd.readouterr().out == ""
    os.remove(tmp_path / "run.json")
    with pytest.raises(UserError, match="no corpus there"):
        busray.verify(store.url)


def test_a_folder_is_checked(tmp_path: Path) -> None:
    (phantoms,) = Path(unpack(tmp_path).url).glob("phantoms-*")
    seen: list[str] = []
    report = busray.check(phantoms, report=lambda stage, done, total: seen.append(stage))
    assert report.to_dict() and set(seen) == {"check"}


def test_a_plan_needs_no_run(tmp_path: Path) -> None:
    plan = busray.plan(TREE, {"output": str(tmp_path / "run"), "classes.benign.images": 9})
    assert plan.to_dict(None, [])
