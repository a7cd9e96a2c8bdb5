"""Claims: configs of statements about methods, and their verdicts from the records."""
