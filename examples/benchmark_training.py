"""Measures what a training step takes, and whether the data loader keeps up with it."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["benchmark-training", *sys.argv[1:]]))
