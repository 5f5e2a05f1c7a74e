"""Readers: one module a format; each turns a path into a :class:`~cellweave.core.study.readers.base.Source`."""
