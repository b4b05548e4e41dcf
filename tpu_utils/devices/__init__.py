"""Strategies, clusters and the connection to devices."""
