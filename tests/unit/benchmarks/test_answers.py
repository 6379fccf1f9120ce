"""What the page of make bench says of answers of several runs."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.speed import __main__ as speed
from benchmarks.speed.answers import Answer, Loss, page, read_answers, write_answers

QUESTIONS = ("png", "frechet", "job")
HEADER = "| header |"


def answer(question: str, *losses: Loss) -> Answer:
    return Answer(question, "2026-12-01", 5, "two cores", [f"| row of {question} |"], list(losses), 1.5, [0.5, 2.0])


def loss(name: str, ratio: float) -> Loss:
    return Loss(name, ratio, 2.0, [f"profile of {name}"])


def test_answers_are_read_as_they_were_written(tmp_path: Path) -> None:
    answers = {"png": answer("png", loss("a", 1.0)), "job": answer("job")}
    write_answers(tmp_path / "speed.json", answers)
    assert read_answers(tmp_path / "speed.json") == answers
    assert read_answers(tmp_path / "none.json") == {}


def test_a_question_without_an_answer_says_so() -> None:
    text = page({"job": answer("job")}, QUESTIONS, HEADER)
    lines = [line for line in text.splitlines() if "row of" in line or "not asked yet" in line]
    assert [line.split("|")[1].strip() for line in lines] == [
        "`png`: not asked yet",
        "`frechet`: not asked yet",
        "row of job",
    ]
    assert "| `job` | 2026-12-01 | 5 | 1.5 | 0.5 to 2.0 | 1 |" in text
    assert "1. two cores" in text


def test_the_two_contests_furthest_below_their_goals_show_a_profile() -> None:
    answers = {"png": answer("png", loss("a", 1.8), loss("b", 0.5)), "job": answer("job", loss("c", 1.0))}
    text = page(answers, QUESTIONS, HEADER)
    assert text.index("profile of b") < text.index("profile of c")
    assert "profile of a" not in text


def test_questions_asked_again_renew_their_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "speed.md"
    write_answers(tmp_path / "speed.json", {"png": answer("png"), "job": answer("job"), "frechet": answer("frechet")})

    def ask(name: str, repeats: int) -> Answer:
        if name == "png":
            raise RuntimeError("broken")
        return Answer(name, "2026-12-02", repeats, "two cores", ["| new row |"])

    monkeypatch.setattr(speed, "ask", ask)
    monkeypatch.setattr(sys, "argv", ["speed", "png", "job", "--out", str(out)])
    with pytest.raises(SystemExit, match="failed: png"):
        speed.main()
    rows = {kept["question"]: kept["rows"] for kept in json.loads((tmp_path / "speed.json").read_text())}
    assert rows == {"png": ["| row of png |"], "job": ["| new row |"], "frechet": ["| row of frechet |"]}
    assert "| new row |" in out.read_text() and "| row of png |" in out.read_text()
