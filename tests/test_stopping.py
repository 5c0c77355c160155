"""A process whose data workers are deaf to signals still ends, also when it dies of an error while they wait."""

import subprocess
import sys

PROGRAM = """
from functools import partial
from torch.utils.data import DataLoader
from vwlmm.stopping import end_workers_at_exit, ignore_in_worker
end_workers_at_exit()
loader = DataLoader(range(1000), num_workers=1, worker_init_fn=ignore_in_worker, persistent_workers=True)
rows = iter(loader)
next(rows)
import sys
sys.stored = rows  # never collected: the worker is alive when Python ends
raise RuntimeError("in the middle")
"""


def test_a_process_that_dies_of_an_error_does_not_wait_for_its_deaf_workers():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert "in the middle" in done.stderr
    assert done.returncode == 1
