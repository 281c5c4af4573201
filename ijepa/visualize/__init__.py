"""Pictures of what the method does: its masks, what encoders see, what predictions look like.

One file a picture; each is a stage of its own, with its own configuration.
"""

from ijepa.visualize.attention import AttentionConfig, visualize_attention
from ijepa.visualize.embedding import EmbeddingConfig, visualize_embedding
from ijepa.visualize.images import EncoderChoice, ImageChoice, Picture
from ijepa.visualize.masks import MaskFigures, MaskSheetConfig, visualize_masks
from ijepa.visualize.neighbors import NeighborsConfig, visualize_neighbors
from ijepa.visualize.pca import PcaConfig, visualize_pca
from ijepa.visualize.retrieval import RetrievalConfig, visualize_retrieval

__all__ = [
    "AttentionConfig",
    "EmbeddingConfig",
    "EncoderChoice",
    "ImageChoice",
    "MaskFigures",
    "MaskSheetConfig",
    "NeighborsConfig",
    "PcaConfig",
    "Picture",
    "RetrievalConfig",
    "visualize_attention",
    "visualize_embedding",
    "visualize_masks",
    "visualize_neighbors",
    "visualize_pca",
    "visualize_retrieval",
]
