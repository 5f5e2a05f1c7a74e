"""Counts, layers, likelihoods and divergences: the parts that networks are made of."""
