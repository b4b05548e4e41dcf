"""The TPU's compiler without a TPU: what a step needs in time and memory."""
