"""Devices, and the replicas and workers of a step on them. This package knows nothing of
models or training.
"""
