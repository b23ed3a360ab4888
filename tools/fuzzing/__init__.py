"""Mutated model files and what edgerun makes of them: `python tools/fuzz.py`."""
