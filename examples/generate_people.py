"""Generates synthetic images of people with exact keypoints: a COCO keypoint dataset without any download."""

import sys

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main(["generate-people", *sys.argv[1:]]))
