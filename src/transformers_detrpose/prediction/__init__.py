"""Predicting poses in files and camera pictures: finding inputs, the loop over them, and what is written for each.

This is a package of its own because it comes after everything else: it uses the model, drawing and the writer of
results, and nothing but the command `detrpose predict` uses it.
"""
