"""Records of a run, one an image, side and judge; and every rate that is counted from them."""
