"""Panels of the docks: what one sets, and what one reads beside the views."""
