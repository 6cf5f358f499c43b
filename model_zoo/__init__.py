"""Networks: teachers, student rules, weight copy, feature taps, sampling, export.

Modules here import neither data loading nor distributed training.
"""
