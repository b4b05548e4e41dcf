"""What the doors for models of Keras 2 and of Keras 3 share: arguments, rules, messages and
files. Imports neither Keras.
"""
