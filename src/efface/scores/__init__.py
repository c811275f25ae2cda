"""Records of a run, judged and counted."""
