"""What grouped-query attention costs: memory, time and quality."""
