"""Predicts poses in images, videos and camera pictures, draws them and writes them as JSON."""

from transformers_detrpose.commands.predict import main

if __name__ == "__main__":
    raise SystemExit(main())
