"""View models: settings, the spec being edited, the open study, the runs. Nothing here draws."""
