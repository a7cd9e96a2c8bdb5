"""Ten chosen faults, each in a line that decides a number; the tests must notice all of them."""
