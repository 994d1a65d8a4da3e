"""Which nodes a query asks: filters by name and by tag."""

from __future__ import annotations

import re

from proglog.membership import limits
from proglog.membership.codec.serf_messages import TagFilter
from proglog.membership.codec.wire import decode, items, name, unpack
from proglog.membership.errors import MalformedMessage

_FILTER_NODES, _FILTER_TAG = 0, 1
_filter_names = items(name, limits.nodes_max)


def is_asked(filters: tuple[bytes, ...], node: str, tags: dict[str, str]) -> bool:
    """Whether a node passes all filters of a query. Raises MalformedMessage."""
    return all(_passes(one, node, tags) for one in filters)


def _passes(one: bytes, node: str, tags: dict[str, str]) -> bool:
    kind = one[0] if one else None
    if kind == _FILTER_NODES:
        return node in _filter_names(unpack(one[1:]))
    if kind == _FILTER_TAG:
        wanted = decode(TagFilter, one[1:])
        return _matches(wanted.expression, tags.get(wanted.tag, ""))
    raise MalformedMessage("query filter of an unknown type")


def _matches(expression: str, value: str) -> bool:
    """Whether a regular expression from the network matches somewhere in a tag's value.

    Go matches in linear time, Python backtracks: `(a+)+$` on a tag of 30 bytes would stop this
    node. Without groups, a search tries at most each start of the value, and for each quantifier
    each length of what it takes: that product is bounded. Raises MalformedMessage for an
    expression that may take longer, or is none.
    """
    if len(expression.encode()) > limits.filter_expression_bytes_max:
        raise MalformedMessage("query filter with a long expression")
    # Escaped characters are no syntax; escaped digits are references to groups.
    syntax = re.sub(r"\\[^0-9]", "_", expression)
    if re.search(r"[()]|\\[0-9]", syntax):
        raise MalformedMessage("query filter with groups, which may match slowly")
    quantifiers = len(re.findall(r"[*+?{]", syntax))
    if (len(value) + 1) ** (quantifiers + 1) > limits.filter_steps_max:
        raise MalformedMessage("query filter with an expression that may match slowly")
    try:
        return re.search(expression, value) is not None
    except (re.error, OverflowError, RecursionError) as error:
        raise MalformedMessage("query filter with a broken expression") from error
