"""What records say: content, page, comparison, gate."""
