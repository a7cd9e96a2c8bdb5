"""Searches: propose a student and settings, train them briefly, score them, keep the best."""
