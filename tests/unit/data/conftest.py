"""Checked folders that several test files read: one near-duplicate search for all of them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from busray.data.check import CheckReport, check
from tests.support.planted import plant


@pytest.fixture(scope="session")
def phantom_report(phantom_folder: Path) -> CheckReport:
    """The check of phantom_folder."""
    return check(phantom_folder)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory, phantom_folder: Path) -> Path:
    """phantom_folder with planted findings; read only."""
    folder = tmp_path_factory.mktemp("planted") / "data"
    shutil.copytree(phantom_folder, folder)
    plant(folder)
    return folder


@pytest.fixture(scope="session")
def report(planted: Path) -> CheckReport:
    """The check of the planted folder."""
    return check(planted)


@pytest.fixture(scope="session")
def readable_report(report: CheckReport) -> CheckReport:
    """The check of the planted folder, as if its unreadable files were not there."""
    return replace(report, unreadable=())


@pytest.fixture(scope="session")
def real_report(busi: Path) -> CheckReport:
    """The check of the real images."""
    return check(busi)
