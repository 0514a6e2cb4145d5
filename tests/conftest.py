"""Settings of all tests."""

import os

# One thread a process, set before torch is first imported: the tests run in several processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
