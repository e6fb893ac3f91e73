"""What asv measures: one module for each noun of the library."""
