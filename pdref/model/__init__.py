"""One transformer for every method, and the cache it decodes with."""
