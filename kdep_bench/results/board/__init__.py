"""The board: results by method and task, and the comparisons and summaries made from them."""
