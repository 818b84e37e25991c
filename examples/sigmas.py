"""Estimates the sigma of each keypoint from images that were annotated twice."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["sigmas", *sys.argv[1:]]))
