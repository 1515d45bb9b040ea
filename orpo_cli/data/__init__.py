"""From files to batches: rows/, shapes/ (rows to pairs), tokens/ (pairs to tokens), checking/, the step plan."""
