"""What a machine, a store or a damaged run does to a command: one message, a status, a log.

No command shows a traceback. Each row is (what is wrong, the command that meets it).
"""

import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import botocore.exceptions as boto
import pyarrow.parquet as pq
import pytest
import yaml

from busray import storage
from busray.cli import main
from busray.command_line import COMMANDS
from busray.config_file import validate
from busray.records import UserError, json_object
from busray.stages import classifiers
from tests.unit.test_pinned_run import maker

DAMAGED = "bytes cannot be read"


@pytest.fixture(scope="module")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and, beside it, its config; tests damage one file at a time and mend it."""
    folder = tmp_path_factory.mktemp("failures")
    with zipfile.ZipFile(maker.ARCHIVE) as packed:
        packed.extractall(folder / "run")
    settings = {**json_object((folder / "run" / "config.json").read_bytes()), "output": str(folder / "run")}
    (folder / "c.yaml").write_text(yaml.safe_dump(settings))
    return folder / "run"


@pytest.fixture(autouse=True)
def without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs go below tmp_path, and a command that wants a worker ends."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(classifiers, "STEPS", maker.CLASSIFIER_STEPS)  # as the run was made

    def refuse(*_: Any) -> None:
        raise UserError("no Ray in this test")

    monkeypatch.setattr("busray.cluster.pool.session", refuse)


def commands(run: Path, folder: Path) -> dict[str, list[str]]:
    """Every command that reads a run, as far as it gets without Ray."""
    url, config = str(run), str(run.with_name("c.yaml"))
    shard = next((run / "data" / "benign").iterdir())
    image_id = pq.read_table(shard, columns=["image_id"])["image_id"][0].as_py()
    return {
        "verify": ["verify", url],
        "gc": ["gc", url],
        "card": ["card", url],
        "reproduce": ["reproduce", url, image_id],
        "readers": ["readers", "export", url, str(folder / "readers"), "--images=1", "--seed=1"],
        "export": ["export", url, str(folder / "exported"), "--to=imagefolder"],
        "audit": ["audit", url],
        "study": ["study", config, "--study.primary={metric: macro_f1, arm: pretrained@1, against: real}"],
        "finetune": ["finetune", config],
        "generate": ["generate", config],
        "evaluate": ["evaluate", config],
        "run": ["run", config],
    }


class Ended:
    """How a command ended."""

    def __init__(self, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
        capsys.readouterr()
        self.status = main(arguments)
        self.out, self.err = capsys.readouterr()
        assert "Traceback" not in self.out + self.err
        assert self.err.count("busray: ") - self.err.count("busray: warning: ") <= 1

    @property
    def log(self) -> Path | None:
        lines = [line for line in self.err.splitlines() if line.startswith("log with all details: ")]
        return Path(lines[0].partition(": ")[2]) if lines else None


# ---- each cut record of a run, for every command that reads it

EVERYWHERE = {"verify", "gc", "card", "reproduce", "readers", "audit", "study", "finetune", "generate", "evaluate"}
OPENING = EVERYWHERE - {"verify", "gc", "card"}  # they open the run with its settings
READERS_OF: dict[str, set[str]] = {
    "run.json": EVERYWHERE | {"export"},
    "config.json": OPENING | {"export"},
    "base.json": OPENING,
    "dataset.json": OPENING | {"export"},
    "adapters.json": {"finetune", "generate", "evaluate"},
    "check.json": {"evaluate", "study"},
    "report.json": {"card", "export"},
    "plan/0000.json": {"verify", "generate", "evaluate"},
    "plan/0001.json": {"verify", "generate", "evaluate"},
    "commits/benign/00000000-00004.json": {"verify", "reproduce", "readers", "export", "audit", "evaluate"},
    "commits/malignant/00000004-00002.json": {"verify", "readers", "export", "audit", "evaluate"},
    "classifiers/2286fa822ff24d94.json": {"generate", "evaluate"},
    "segmenters/29005f1b58104ca5.json": {"evaluate"},
    "arms/base/run.json": {"verify", "evaluate"},
    "arms/base/plan/0000.json": {"verify", "evaluate"},
    "arms/base/commits/benign/00000000-00004.json": {"verify", "evaluate"},
}
CUTS: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "other": lambda data: b'{"other": 1}',
}


@pytest.mark.parametrize("key", READERS_OF)
def test_a_cut_record_is_named_by_every_command_that_reads_it(
    pinned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    lines = commands(pinned, tmp_path)
    whole = (pinned / key).read_bytes()
    try:
        for name in sorted(READERS_OF[key]):
            (pinned / key).write_bytes(CUTS["half"](whole))
            ended = Ended(capsys, lines[name])
            said = ended.err + ended.out
            assert ended.status == 1, name
            assert key.removeprefix("arms/base/") in said and DAMAGED in said, (name, said)
            assert "same command again" not in said, name
    finally:
        (pinned / key).write_bytes(whole)


@pytest.mark.parametrize("cut", ["empty", "other"])
@pytest.mark.parametrize("key", ["run.json", "plan/0000.json", "dataset.json", "commits/benign/00000000-00004.json"])
def test_a_record_of_other_content_is_damaged_too(
    pinned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, cut: str
) -> None:
    whole = (pinned / key).read_bytes()
    try:
        (pinned / key).write_bytes(CUTS[cut](whole))
        ended = Ended(capsys, commands(pinned, tmp_path)["readers" if key == "dataset.json" else "verify"])
        assert ended.status == 1 and key in ended.err + ended.out
    finally:
        (pinned / key).write_bytes(whole)


def test_cut_timings_do_not_end_finished_work(pinned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pinned / "timings.json").write_bytes(b'{"run":')
    assert Ended(capsys, commands(pinned, tmp_path)["finetune"]).status == 0


# ---- a store that refuses

STORE_ERRORS: dict[str, tuple[Exception, int, str]] = {
    "no keys": (boto.NoCredentialsError(), 2, "Unable to locate credentials"),
    "no profile": (boto.ProfileNotFound(profile="lab"), 2, "(lab) could not be found"),
    "no answer": (boto.EndpointConnectionError(endpoint_url="http://127.0.0.1:9"), 1, "http://127.0.0.1:9"),
    "no right": (PermissionError(13, "Permission denied", "/run/run.json"), 2, "/run/run.json: Permission denied"),
    "open files": (OSError(24, "Too many open files", "/run/run.json"), 1, "Too many open files"),
}


@pytest.mark.parametrize("name", STORE_ERRORS)
@pytest.mark.parametrize("command", ["verify", "gc", "card", "audit", "finetune"])
def test_a_store_that_refuses_is_explained_by_every_command(
    pinned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    command: str, name: str,
) -> None:  # fmt: skip
    error, status, said = STORE_ERRORS[name]

    def refuse(self: storage.Store, key: str) -> bytes:
        raise error

    lines = commands(pinned, tmp_path)
    monkeypatch.setattr(storage.Store, "read", refuse)
    ended = Ended(capsys, lines[command])
    assert ended.status == status and said in ended.err
    assert ("run the same command again" in ended.err) == (status == 1)
    assert ended.log is not None and "Traceback" in ended.log.read_text()


# ---- places

PLACES: dict[str, tuple[list[str], str]] = {
    "a file as run": (["verify", "FILE"], "Not a directory"),
    "a file as output": (["finetune", "CONFIG", "--output=FILE"], "Not a directory"),
    "below a file": (["finetune", "CONFIG", "--output=FILE/x"], "Not a directory"),
    "a loop as run": (["verify", "LOOP"], "symbolic link"),
    "a loop as output": (["finetune", "CONFIG", "--output=LOOP"], "symbolic link"),
    "a loop as config": (["run", "LOOP"], "symbolic link"),
    "a folder as config": (["run", "FOLDER"], "Is a directory"),
    "a folder as --json": (["check", "DATA", "--json=FOLDER"], "is a folder: name a file in it"),
    "a long name": (["verify", "x" * 300], "has more than 255 bytes: write a shorter one"),
    "readers below a file": (["readers", "export", "RUN", "FILE/x", "--images=1"], "Not a directory"),
    "no such run": (["verify", "NOWHERE"], "no corpus there"),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_place_of_the_wrong_kind_is_a_mistake(
    pinned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    arguments, said = PLACES[name]
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    data = next(folder for folder in pinned.iterdir() if folder.name.startswith("phantoms-"))
    names = {"FILE": "file", "FOLDER": "folder", "LOOP": "loop", "NOWHERE": "nowhere"}
    places = {word: str(tmp_path / file) for word, file in names.items()}
    places |= {"RUN": str(pinned), "CONFIG": str(pinned.with_name("c.yaml")), "DATA": str(data)}
    for word, place in places.items():
        arguments = [argument.replace(word, place) for argument in arguments]
    ended = Ended(capsys, arguments)
    assert ended.status == 2 and said in ended.err


@pytest.mark.parametrize("key", ["run.json", "plan/0000.json", "commits/benign/00000000-00004.json"])
def test_a_folder_in_place_of_a_record_is_named(
    pinned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    path = pinned / key
    whole = path.read_bytes()
    path.unlink()
    path.mkdir()
    try:
        ended = Ended(capsys, ["verify", str(pinned)])
        assert ended.status == 1 and key in ended.err + ended.out
        assert "a folder stands in its place" in ended.err + ended.out and "busray repair" in ended.err + ended.out
    finally:
        path.rmdir()
        path.write_bytes(whole)


# ---- disk, memory


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 100 bytes: what a write to a full disk does, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:  # at once: pytest writes files too
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_is_named_with_the_file(pinned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_files():
        ended = Ended(capsys, ["card", str(pinned)])
    assert ended.status == 1
    assert f"busray: {pinned}/README.md: File too large\n" in ended.err
    assert f"then run the same command again: busray card {pinned}\n" in ended.err
    assert ended.log is None and "(a log with all details could not be written: File too large)" in ended.err
    assert not list(pinned.glob(".tmp-*"))


def test_no_memory_is_told_with_what_to_lower(
    pinned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("busray.corpus.verify.read_rows", refuse)
    ended = Ended(capsys, ["verify", str(pinned)])
    assert ended.status == 1 and "busray: out of memory\nlower sampling.batch_size" in ended.err


def test_an_error_of_busray_itself_asks_for_a_report_and_keeps_the_traceback(
    pinned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = "^".join(["Mustermann", "Erika"])  # a traceback quotes this line, and not the next

    def fail(*_: Any) -> None:
        raise KeyError(patient)

    monkeypatch.setattr("busray.corpus.manifest.orphans", fail)
    ended = Ended(capsys, ["gc", str(pinned)])
    assert ended.status == 1
    assert "an error of busray itself, KeyError" in ended.err and "please report it with the log" in ended.err
    assert ended.log == pinned / "ray.log"
    assert "in _gc" in ended.log.read_text()
    assert "Mustermann" not in ended.err + ended.log.read_text()
    ended.log.unlink()


# ---- standard output

PRINTED = "from busray import cli, commands; commands.COMMAND_FUNCTIONS['gc'] = {}; cli.process()"
MUCH = "lambda *_: print('x' * 10**7) or 0"
WITH_A_TABLE = "lambda *_: [commands.terminal.print_table('t', ['a'], [['x' * 9000]] * 90) for _ in range(9)] and 0"


def shell(line: str, function: str = MUCH, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command whose work is to print, in a shell's line: `PROGRAM gc x | head -c 1`."""
    program = f'{sys.executable} -c "{PRINTED.format(function)}"'
    environment = {**os.environ, **environment}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("PROGRAM", program)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip


@pytest.mark.parametrize("function", [MUCH, WITH_A_TABLE])
def test_a_reader_that_ends_first_is_no_error(function: str) -> None:
    ended = shell("PROGRAM gc x | head -c 1", function)
    assert (ended.returncode, ended.stderr, len(ended.stdout)) == (141, "", 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_standard_output_is_told() -> None:
    ended = shell("PROGRAM gc x > /dev/full", WITH_A_TABLE)
    assert ended.returncode == 1 and "busray: standard output: No space left on device\n" in ended.stderr


def test_closed_standard_streams_do_not_end_a_command() -> None:
    ended = shell("PROGRAM gc x >&- 2>&- <&-", WITH_A_TABLE)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_terminal_of_ascii_shows_every_name() -> None:
    ended = shell("PROGRAM gc x", "lambda *_: print(chr(233) + chr(0xdcff)) or 0", PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stdout) == (0, "\\xe9\\udcff\n")


def test_the_exit_statuses_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    for status in ("0", "1", "2", "130", "141"):
        assert f"\n  {status} " in out


def test_every_command_that_reads_a_run_is_in_the_table(pinned: Path, tmp_path: Path) -> None:
    others = {"doctor", "check", "plan", "demo", "ablate", "status", "repair", "adapters", "completion", "config"}
    others.add("serve")  # it answers until it is stopped: tests/unit/stages/test_serve.py
    assert COMMANDS.keys() - others == commands(pinned, tmp_path).keys()
    assert validate(yaml.safe_load(pinned.with_name("c.yaml").read_text())).output == str(pinned)
    assert shutil.which("bash")


def test_a_mistaken_flag_of_verify_is_said_and_not_passed_over(
    pinned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = Ended(capsys, ["verify", "--evidence", str(pinned), "--dataset.pth=x"])
    assert ended.status == 2 and "dataset.pth" in ended.err
