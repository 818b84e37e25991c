"""Synthetic people: articulated figures in random poses, their scenery, and images and datasets of them."""
