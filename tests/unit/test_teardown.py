"""A command that has done its work ends with its own status, whatever native libraries do afterwards."""

import subprocess
import sys


def test_a_finished_command_is_not_failed_by_a_library_that_aborts_the_teardown() -> None:
    code = "import atexit, os; atexit.register(os.abort); from busray.cli import finish; print('told'); finish(3)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (3, "told\n")
