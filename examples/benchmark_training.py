"""Measures what a training step takes, and whether the data loader keeps up with it."""

from transformers_detrpose.commands.benchmark_training import main

if __name__ == "__main__":
    raise SystemExit(main())
