import subprocess
import sys

PROGRAM = """
import subprocess, sys
from megatron_cgrpo.rollout.stderr_tail import StderrTail
tail = StderrTail()
child = "import sys; sys.stderr.write('(core) ERROR x.py:1] ValueError: too small\\\\n'); raise RuntimeError('last')"
subprocess.run([sys.executable, "-c", child])
sys.stderr.write("RuntimeError: Engine core initialization failed. See above\\n")
print(tail.last_error())
"""


def test_the_last_error_of_a_child_is_found_and_everything_is_passed_on() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "RuntimeError: last\n"
    assert "ValueError: too small" in done.stderr and "See above" in done.stderr and "\x00" not in done.stderr
