"""The engine: data, models, training, results. Runs without Qt."""
