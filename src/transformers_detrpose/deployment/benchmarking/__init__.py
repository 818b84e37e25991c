"""Comparing how fast a model is in several runtimes."""
