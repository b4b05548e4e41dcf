"""Keras models with auxiliary batch norms: their conversion, their branches, and a
network made of them.
"""
