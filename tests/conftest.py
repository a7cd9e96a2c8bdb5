"""Settings of all tests: one thread; hypothesis uses the same examples in every run, no deadline.

The tests' tensors are tiny: with two threads that wait for each other, three tests took 145 s on
two busy cores, and 9 s with one thread. A deadline would depend on how busy the machine is.
"""

import os

# Set before torch is imported; processes that tests start inherit these variables.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

from hypothesis import settings  # noqa: E402

settings.register_profile("tests", deadline=None, database=None, derandomize=True)
settings.load_profile("tests")
