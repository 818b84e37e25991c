"""Predicts poses in more images than fit in memory, or on more machines than one: Parquet out, a row per image.

The input is divided into ranges of images. Each becomes one file, which is written whole or not at all and named after
its range, so that whoever comes second, after an interruption or on another machine, does what is missing and no more.
"""
