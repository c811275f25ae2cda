"""Where shards run. `local`: one-thread worker processes on this machine."""
