"""Uncertainty and selection: arrays in, arrays out.

Knows torch, numpy and scipy; no files, no clock, no network.
"""
