"""Questions to a trained model: open a run, then ask for latents, expression, likelihoods or differential expression.

Everything begins with :func:`cellweave.core.query.opened.open_run`. The answers are numpy arrays and tables, so that the window, the
command line and a script can all ask.
"""
