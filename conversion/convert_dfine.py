"""Initializes a DETRPose model from a D-FINE detector: its backbone and encoder, with an untrained pose decoder."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["convert-dfine", *sys.argv[1:]]))
