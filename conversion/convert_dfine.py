"""Starts a DETRPose model from a D-FINE detector: its backbone and encoder, with a fresh pose decoder."""

from transformers_detrpose.commands.convert_dfine import main

if __name__ == "__main__":
    raise SystemExit(main())
