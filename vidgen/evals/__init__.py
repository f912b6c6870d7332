"""Evaluation: metrics with their protocol records, and the registry that loads them when asked.

A metric is a line of `registry.METRICS`; nothing here is imported before it is asked for.
"""
