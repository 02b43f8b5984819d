"""What memory this process is said to hold."""

import subprocess
import sys

import numpy as np

from s3diff_runtime.memory import process_memory

TELL = "from s3diff_runtime.memory import process_memory; print(process_memory('VmHWM'))"


def test_memory_now_and_at_most() -> None:
    before = process_memory("VmRSS")
    held = np.ones(2**24)
    assert process_memory("VmRSS") >= before + held.nbytes // 2
    del held
    assert process_memory("VmHWM") >= process_memory("VmRSS") > 2**20


def test_what_the_parent_holds_is_not_counted() -> None:
    held = np.ones(2**25)
    told = subprocess.run([sys.executable, "-c", TELL], capture_output=True, text=True, check=True).stdout
    assert 2**20 < int(told) < held.nbytes
