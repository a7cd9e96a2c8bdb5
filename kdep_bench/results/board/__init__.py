"""The board: results by method and task, with what is compared and computed from them."""
