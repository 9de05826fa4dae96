"""Public data sets: what there is, fetching it, and unpacking archives that nobody vouches for."""
