"""For all tests: one thread; the same examples of a property in every run, and no deadline.

The tests' tensors are tiny: with two threads each that wait for one another, three tests took
145 s on two busy cores that take 9 s with one. A deadline depends on how busy the machine is.
"""

import os

# Before torch is imported, here and in what the tests start.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

from hypothesis import settings  # noqa: E402

settings.register_profile("tests", deadline=None, database=None, derandomize=True)
settings.load_profile("tests")
