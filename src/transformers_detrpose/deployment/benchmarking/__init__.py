"""Benchmarks of a model in several runtimes."""
