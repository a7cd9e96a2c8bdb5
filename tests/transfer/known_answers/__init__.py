"""Scores calculated by hand, which the real transfer stage must give exactly.

The colour of an image is a number, its code. The network predicts a class from the code, and the
annotations of the data set state the right class. Every fault in reading the data (another split,
order, mode, class order, threshold or entry of the metric) gives a different number.
"""
