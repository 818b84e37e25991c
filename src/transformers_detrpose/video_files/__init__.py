"""Video files, streams and cameras: frames with their times, and the sound."""
