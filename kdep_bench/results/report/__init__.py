"""Tables, charts and the page, all made from one board of results."""
