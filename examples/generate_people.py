"""Draws pictures of made-up people with exactly known poses: a COCO keypoint dataset without any download."""

from transformers_detrpose.commands.generate_people import main

if __name__ == "__main__":
    raise SystemExit(main())
