"""Where the time of a piece of work goes: functions of Python, and operations of torch."""

import cProfile
import pstats
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LINES = 8


def profile(work: Callable[[], object]) -> list[str]:
    """Two lists in Markdown: functions by their own time, and torch's operations if it has any."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    profiler = cProfile.Profile()
    profiler.runcall(work)
    lines = _functions(pstats.Stats(profiler))
    with torch_profile(activities=[ProfilerActivity.CPU]) as traced:  # of a GPU: what it was given
        work()
    operations = sorted(traced.key_averages(), key=lambda operation: -operation.self_cpu_time_total)
    spent = sum(operation.self_cpu_time_total for operation in operations)
    if not spent:
        return lines
    lines += ["", "| operation of torch | own time | calls |", "|---|--:|--:|"]
    for operation in operations[:LINES]:
        lines.append(f"| `{operation.key}` | {operation.self_cpu_time_total / spent:.0%} | {operation.count} |")
    return lines


def profile_program(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> list[str]:
    """The first list, of a program in a process of its own. arguments: what follows `python`."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "profile"
        command = [sys.executable, "-m", "cProfile", "-o", str(file), *arguments]
        subprocess.run(command, cwd=folder, env=dict(environment), capture_output=True, check=False)
        return _functions(pstats.Stats(str(file)))


def _functions(stats: pstats.Stats) -> list[str]:
    total = stats.total_tt  # pyright: ignore[reportAttributeAccessIssue] (typeshed leaves it out)
    entries = stats.stats  # pyright: ignore[reportAttributeAccessIssue]
    by_own_time = sorted(entries.items(), key=lambda entry: -entry[1][2])
    lines = ["| function | own time | calls |", "|---|--:|--:|"]
    for (file, _, name), (_, calls, own, _, _) in by_own_time[:LINES]:
        place = "" if file == "~" else f"{Path(file).name}: "
        lines.append(f"| `{place}{name}` | {own / total:.0%} | {calls} |")
    return lines
