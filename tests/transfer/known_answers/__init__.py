"""Scores calculated by hand, which the real transfer stage must give to the last digit.

The colour of an image is a code. The network predicts a class from the code, and the annotations
of the data set say which class is right. Every fault in reading the data (another split, order,
mode, class order, threshold or entry of the metric) gives a different number.
"""
