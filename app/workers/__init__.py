"""Everything that works beside the window: threads and the analysis process, with their events made Qt signals."""
