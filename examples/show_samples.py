"""Draws samples as a model gets them in training, so that you can see whether images and labels agree."""

from transformers_detrpose.commands.show_samples import main

if __name__ == "__main__":
    raise SystemExit(main())
