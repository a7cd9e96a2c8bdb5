"""How much work, time, disk space and GPU-hours the stages of a plan will take."""
