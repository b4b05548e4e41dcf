"""Devices, and the replicas and workers of a step; knows nothing of models or training."""
