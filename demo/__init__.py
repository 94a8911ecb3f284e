"""The main job in small: `python -m demo`, or `make demo`."""
