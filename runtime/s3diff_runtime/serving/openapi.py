"""What OpenAPI says of the paths, beside what their functions say."""

from typing import Any

from s3diff_runtime.pictures.formats import FORMATS
from s3diff_runtime.serving.picture_request import PictureRequest, parameters_of

_MEANINGS = {
    200: "Done.",
    400: "The picture cannot be read, or a parameter is wrong.",
    401: "The token is missing or wrong.",
    408: "The picture took too long to arrive.",
    413: "The picture has too many bytes or pixels.",
    500: "The work failed.",
    503: "No place is free, or the network is not ready; `Retry-After` says when to come back.",
    504: "The picture was not done in time.",
}
_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "request": {"type": "string"}},
}
_PICTURE = {"type": "string", "format": "binary"}
_RESULT_KINDS = {
    **{f"image/{format.name.lower()}": {"schema": _PICTURE} for format in FORMATS.values()},
    "text/event-stream": {"schema": {"type": "string"}},
}
_BODY = {
    "required": True,
    "content": {
        "image/*": {"schema": _PICTURE},
        "multipart/form-data": {"schema": {"type": "object", "properties": {"picture": _PICTURE}}},
    },
}


def _answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers of a path by status, those of refusals with what they hold."""
    refused = {"application/json": {"schema": _ERROR}}
    return {
        status: {"description": _MEANINGS[status]} | ({"content": refused} if status >= 400 else {})
        for status in statuses
    }


_WORK = (400, 401, 408, 413, 500, 503, 504)
_RESULT = {"description": "The picture, with its metadata; or events.", "content": _RESULT_KINDS}
_PARAMETERS = [parameter.described() for parameter in parameters_of(PictureRequest)]
UPSCALE: dict[str, Any] = {
    "responses": _answers(*_WORK) | {200: _RESULT},
    "openapi_extra": {"parameters": _PARAMETERS, "requestBody": _BODY},
}
ESTIMATE: dict[str, Any] = {
    "responses": _answers(200, *_WORK),
    "openapi_extra": {"requestBody": _BODY},
}
ABOUT: dict[str, Any] = {"responses": _answers(200, 401)}
HEALTH: dict[str, Any] = {"responses": _answers(200)}
READINESS: dict[str, Any] = {"responses": _answers(200, 503)}
