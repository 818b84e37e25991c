"""The commands of `detrpose`: arguments and main, nothing else."""
