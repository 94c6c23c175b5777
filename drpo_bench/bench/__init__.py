"""Speed against the machine's own matmul rate and against peers, as ratios measured in one process tree."""
