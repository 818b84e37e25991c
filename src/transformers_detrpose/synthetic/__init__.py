"""The parts of `generate_people.py`: poses, figures drawn in them, and the scenery around them."""
