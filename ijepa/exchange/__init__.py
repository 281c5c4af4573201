"""I-JEPA's weights in files of ours, of the published code, of timm and of transformers.

All hold the same tensors; `Networks` is what they have in common, and what is known beside them.
"""
