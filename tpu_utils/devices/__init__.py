"""Distribution strategies, clusters of machines, and the connection to devices."""
