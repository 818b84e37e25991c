"""Measures a model's average precision and recall on COCO, CrowdPose or your own dataset in COCO's format."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["evaluate", *sys.argv[1:]]))
