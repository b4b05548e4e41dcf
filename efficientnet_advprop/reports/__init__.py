"""Compares the results of evaluations, and renders them as tables, charts and pages."""
