"""A pretraining run between its first step and its last: train, watch, save, resume."""
