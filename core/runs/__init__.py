"""Runs: folders, events, and the one way to do a run."""
