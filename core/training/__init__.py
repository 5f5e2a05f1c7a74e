"""The training engine: minibatches in, fitted weights out."""
