"""Claims that one method of a suite scores above another. Imported by suites in `read_base`."""


def above(better, other, title="", suffix="", at="the same data and epochs", **side):
    """The claim that the method `better` scores above the method `other`.

    Args:
        better, other: names of the methods; the claim is named "<better>_above_<other>".
        title: title of the claim; "" for "<better> beats <other>".
        suffix: end of the claim's name.
        at: condition of the comparison, in the statement.
        side: the same condition as keys of both sides (`epochs`, `share`).
    """
    return dict(
        name=f"{better}_above_{other}{suffix}",
        title=title or f"{better} beats {other}",
        statement=f"{better} scores above {other} at {at}.",
        kind="difference",
        a=dict(method=better, **side),
        b=dict(method=other, **side),
    )
