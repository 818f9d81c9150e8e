"""``make bench``: how fast the road of a request is, each figure a ratio in one run."""
