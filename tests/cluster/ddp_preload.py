"""What a fork server of the tests imports before it forks DDP stages, who did and at what cost."""

import os
import time

import torch._dynamo  # DistributedDataParallel imports it where it is not there yet
import torch.distributed  # noqa: F401

IMPORTER = {"pid": os.getpid(), "cpu_s": time.process_time()}
