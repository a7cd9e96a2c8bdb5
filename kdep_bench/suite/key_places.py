"""Finds the part of a suite that has a key, for errors about a key in the wrong part."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import BaseModel

from kdep_bench.data import own, pocket
from kdep_bench.results.claims.schema import Claim
from kdep_bench.suite.schema import DATA_KEYS, MODELS, SuiteFile


def fix(key: str) -> str | None:
    """The instruction to write `key` into the part of a suite that has it; None if no part has it.

    For example "`shares` is a key of the suite: write it there".
    """
    places = [place for place, keys in _parts().items() if key in keys]
    return f"`{key}` is a key of {' or '.join(places)}: write it there" if places else None


def _parts() -> dict[str, Collection[str]]:
    """Part of a suite -> its keys."""
    fields = SuiteFile.model_fields
    inner = {name: field.annotation for name, field in fields.items()}
    models = {n: a for n, a in inner.items() if isinstance(a, type) and issubclass(a, BaseModel)}
    return {
        "the suite": fields,
        **{f"`{name}` of the suite": model.model_fields for name, model in models.items()},
        "the data": {*DATA_KEYS, *own.KEYS, *pocket.DEFAULTS},
        **{f"a {kind}": MODELS[kind].model_fields for kind in ("student", "method", "task")},
        "a claim": Claim.model_fields,
    }
