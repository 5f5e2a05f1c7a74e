"""What is computed from the latent space: neighbours, UMAP, clusters, scores, and the baseline without integration."""
