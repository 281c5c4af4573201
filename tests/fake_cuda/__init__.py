"""CUDA tensors without a GPU: torch on a runtime that computes nothing, and tools that watch it.

Shapes, devices, dtypes, memory, copies and torch's choice of kernels are real; values and times
are not. From the root of the repository, `python -m tests.fake_cuda` lists the tools.
"""
