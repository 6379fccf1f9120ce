"""What pip installs: extras agree with the files that make installs by hash."""

import re
import tomllib

import yaml

from busray import __version__, places
from busray.vision import efficientnet, inception
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def test_the_extra_evidence_is_what_make_installs_by_hash() -> None:
    pinned = []
    for name in ("requirements-inception.txt", "requirements-classifier.txt"):
        lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
        (line,) = lines
        assert re.search(r" --hash=sha256:[0-9a-f]{64}$", line)
        pinned.append(line.split()[0])
    assert EXTRAS["evidence"] == pinned
    assert [line.split("==")[0] for line in pinned] == [inception.WHEEL, efficientnet.WHEEL]


def test_every_store_and_format_that_needs_a_package_has_its_extra() -> None:
    for package, extra in places.EXTRAS.items():
        assert [line.split(">=")[0] for line in EXTRAS[extra]] == [package]
    assert {"dicom", "docs"} <= EXTRAS.keys()


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ and citation["license"] == PROJECT["license"]
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["title"]


def test_the_workflow_and_the_issue_forms_are_what_github_reads() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert {"run": ".ci/run"} in job["steps"]
    for name in ("bug", "wish"):
        form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
        assert form["name"] and form["description"]
        questions = [part for part in form["body"] if part["type"] != "markdown"]
        assert questions and all(part["id"] and part["attributes"]["label"] for part in questions)
