"""Reading and writing of weights: released checkpoints, published files, timm's and
Keras's.
"""
