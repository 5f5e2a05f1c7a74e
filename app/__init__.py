"""The window: Qt only here. It holds no tensor and computes nothing; it speaks to the engine in specs, events and folders."""
