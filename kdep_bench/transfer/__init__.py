"""Transfer: one exported backbone into the stock mm models, trained and scored per task."""
