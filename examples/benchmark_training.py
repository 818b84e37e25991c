"""Measures the time of a training step, and whether the data loader keeps up."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["benchmark-training", *sys.argv[1:]]))
