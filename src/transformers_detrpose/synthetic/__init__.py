"""Generates people: articulated figures in sampled poses, the scenery around them, pictures and datasets of them."""
