"""Compiles training steps for a TPU on machines without one, and reports time and memory."""
