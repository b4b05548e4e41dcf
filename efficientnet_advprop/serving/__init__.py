"""A trained network in use: restored, asked about files, and exported (SavedModel, TFLite, …)."""
