"""Bytes on disk: stages, shards, features, checkpoints, results. No science."""
