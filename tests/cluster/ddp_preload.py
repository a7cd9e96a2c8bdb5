"""Imported by the fork server of the tests before it forks DDP stages.

IMPORTER: process id and CPU seconds of the process that imported it.
"""

import os
import time

import torch._dynamo  # DistributedDataParallel would import it
import torch.distributed  # noqa: F401

IMPORTER = {"pid": os.getpid(), "cpu_s": time.process_time()}
