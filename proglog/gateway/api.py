"""The parameters of `/v1`, once: what is accepted, refused, and told by the OpenAPI document."""

from __future__ import annotations

from typing import Any, NamedTuple

from aiohttp import web

from proglog.errors import InvalidRequest, quoted


class Parameter(NamedTuple):
    """One parameter of a call. `schema` is JSON Schema."""

    name: str
    place: str
    """"query", "header" or "path"."""
    schema: dict[str, Any]
    description: str


class Route(NamedTuple):
    """One call."""

    method: str
    path: str
    summary: str
    parameters: tuple[Parameter, ...]
    answer: str
    """Content type of what comes back."""


_NUMBER = {"type": "integer", "minimum": 0, "format": "uint64"}
_LOG = Parameter("log", "query", {"type": "string"}, "Which log; the default one unless given.")
_FORMAT = Parameter(
    "format",
    "query",
    {"type": "string", "enum": ["base64", "text"], "default": "base64"},
    "How values and keys are told; as text, what is not UTF-8 is lost.",
)
_STARTS = (
    Parameter("offset", "query", {"type": "string"}, "Begin at an offset, earliest or latest."),
    Parameter("last", "query", _NUMBER, "Begin with the last so many records."),
    Parameter(
        "time",
        "query",
        {"type": "string", "format": "date-time"},
        "Begin with the first record appended at this time or later; the time names its zone.",
    ),
)
STARTS = tuple(parameter.name for parameter in _STARTS)
"""Ways to say where to begin, of which a call takes one."""

PRODUCE = Route(
    "post",
    "/v1/records",
    "Append the body, any bytes, as one record.",
    (
        _LOG,
        Parameter("expected_offset", "query", _NUMBER, "Append at this offset or not at all."),
        Parameter("X-Proglog-Key", "header", {"type": "string"}, "The record's key, base64."),
        Parameter(
            "X-Proglog-Header", "header", {"type": "string"}, "NAME=BASE64, as often as needed."
        ),
        Parameter("X-Proglog-Timestamp", "header", _NUMBER, "Milliseconds since the epoch."),
    ),
    "application/json",
)
PAGE = Route(
    "get",
    "/v1/records",
    "A list of records; it may be shorter than the limit and yet not end the log.",
    (*_STARTS, Parameter("limit", "query", _NUMBER, "At most so many."), _FORMAT, _LOG),
    "application/json",
)
VALUE = Route(
    "get",
    "/v1/records/{offset}",
    "One record: its value as it is, the rest in headers; or as JSON where that is accepted.",
    (Parameter("offset", "path", _NUMBER, "Its offset."), _LOG),
    "application/octet-stream",
)
TAIL = Route(
    "get",
    "/v1/tail",
    "Records as they come, as JSON lines or, where text/event-stream is accepted, as events.",
    (
        *_STARTS,
        _FORMAT,
        _LOG,
        Parameter(
            "Last-Event-ID",
            "header",
            {"type": "integer", "minimum": -1},
            "For events: go on after this offset, whatever the query says.",
        ),
    ),
    "text/event-stream",
)
DESCRIBE = Route("get", "/v1/log", "What the log holds, and where.", (_LOG,), "application/json")
ROUTES = (PRODUCE, PAGE, VALUE, TAIL, DESCRIBE)


def check_query(request: web.Request, route: Route) -> None:
    """Refuses what this call does not know, or is told twice. Raises InvalidRequest."""
    known = [each.name for each in route.parameters if each.place == "query"]
    for name in request.query:
        if name not in known:
            raise InvalidRequest(f"unknown parameter {quoted(name)}: known are {', '.join(known)}")
        if len(request.query.getall(name)) > 1:
            raise InvalidRequest(f"{name} is given more than once")
    starts = [name for name in STARTS if name in request.query]
    if len(starts) > 1:
        raise InvalidRequest(f"{' and '.join(starts)} exclude each other: give one")


def openapi() -> dict[str, Any]:
    """The document by which programs of any language call this."""
    paths: dict[str, Any] = {}
    for route in ROUTES:
        operation: dict[str, Any] = {
            "summary": route.summary,
            "parameters": [_parameter(each) for each in route.parameters],
            "responses": {
                "200": {"description": "Done.", "content": {route.answer: {}}},
                "default": {
                    "description": "Refused: code, message and details say why.",
                    "content": {"application/json": {"schema": _ERROR}},
                },
            },
        }
        if route.method == "post":
            operation["requestBody"] = {"content": {"application/octet-stream": {}}}
        paths.setdefault(route.path, {})[route.method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Proglog", "version": "1"},
        "paths": paths,
    }


_ERROR = {
    "type": "object",
    "properties": {
        "code": {"type": "string"},
        "message": {"type": "string"},
        "details": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.description,
        "schema": parameter.schema,
    }
