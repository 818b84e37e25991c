"""Measures a model's average precision and recall on COCO, CrowdPose or your own dataset in COCO's format."""

from transformers_detrpose.commands.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
