"""What leaves the program: h5ad, h5mu, tables, figures, commands and scripts."""
