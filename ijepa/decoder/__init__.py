"""Pixels from embeddings."""
