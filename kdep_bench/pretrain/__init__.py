"""The pre-training stage: samples, teacher outputs, model, training loop, checkpoints."""
