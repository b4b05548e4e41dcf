"""What is made of evaluation results: comparisons, tables, charts and pages."""
