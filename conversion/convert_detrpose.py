"""Converts an official DETRPose checkpoint into a folder that `from_pretrained` loads."""

from transformers_detrpose.commands.convert import main

if __name__ == "__main__":
    raise SystemExit(main())
