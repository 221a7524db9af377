"""Training rows against the biases that an audit found, and the comparison of the audits before and after."""
