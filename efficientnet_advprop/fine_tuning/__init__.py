"""From a folder of photographs to trained networks and a report: what `fine_tune` is made of."""
