"""Images: the pocket data maker, fixed views, checks of data sets in the real formats."""
