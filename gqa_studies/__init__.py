"""What grouped-query attention costs: time against the peers that people would use instead, and memory."""
