"""Draws augmented training samples, to check that images and labels match."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["show-samples", *sys.argv[1:]]))
