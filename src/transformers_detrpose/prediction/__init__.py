"""Predicts poses in files and camera streams: finds the inputs, loops over them and writes the results.

This is a separate package at the top of the dependency graph: it uses the model, drawing and the writer of results, and
only the command `detrpose predict` uses it.
"""
