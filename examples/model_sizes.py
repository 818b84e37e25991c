"""Counts parameters and floating-point operations of the published models, as they are deployed."""

from transformers_detrpose.commands.sizes import main

if __name__ == "__main__":
    raise SystemExit(main())
