"""Draws samples as a model gets them in training, so that you can see whether images and labels agree."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["show-samples", *sys.argv[1:]]))
