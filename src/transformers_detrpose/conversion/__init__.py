"""Converts official DETRPose and D-FINE checkpoints to folders for `from_pretrained`."""
