"""Turns checkpoints of the official code, and D-FINE's, into folders for `from_pretrained`."""
