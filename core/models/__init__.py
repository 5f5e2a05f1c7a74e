"""Model families: declarations without torch, networks with it."""
