"""Kernels ahead of time: libraries, their C header, wheels that carry them. See README.md."""
