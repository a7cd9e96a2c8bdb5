"""Scores calculated by hand, which the real transfer stage must give to the last digit.

An image carries its answer: a colour is a code, the network reads it, and the data set says what
would have been right. Each reading of the data that is wrong (another split, order, mode, class
order, threshold or entry of the metric) gives a different number.
"""
