"""What the window does: opening, training, looking at runs, taking results away."""
