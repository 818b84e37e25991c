"""Predicts poses in images, videos and camera streams, draws them and writes them as JSON."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["predict", *sys.argv[1:]]))
