"""Measure networks: their multiply-adds, their latency, and the similarity of their layers."""
