"""Configurations of experiments, one YAML file each."""
