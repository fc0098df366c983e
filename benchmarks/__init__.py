"""Timings of the engine beside an eager PyTorch reference.

Not needed by the library; PyTorch comes with `pip install '.[bench]'`.
"""
