"""The parts of `benchmark.py` and `benchmark_training.py`: loading models, the backends, measuring."""
