"""`python -m transformers_detrpose` is the command `detrpose`."""

from detrpose_cli import main

if __name__ == "__main__":
    raise SystemExit(main())
