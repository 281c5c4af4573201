"""I-JEPA (Assran et al., CVPR 2023): pretrain, extract, probe, report."""

__version__ = "0.1.0"
