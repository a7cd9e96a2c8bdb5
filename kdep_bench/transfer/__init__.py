"""Transfer: trains mmpretrain, mmdet and mmseg models on tasks, with a pre-trained backbone."""
