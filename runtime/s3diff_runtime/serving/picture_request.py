"""What a client may ask of the service for a picture: parameters of a query, each a field of `Options`."""

from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass
from itertools import starmap
from typing import Any, Literal, get_args, get_origin

from s3diff_runtime.errors import RequestError, refuse
from s3diff_runtime.options import LONGEST_QUOTE, OptionInfo, Options, T, group, option, options_of, read
from s3diff_runtime.pictures.formats import FORMATS, QUALITY, FileFormat, Format, fit_problem
from s3diff_runtime.pictures.photograph import Photograph
from s3diff_runtime.settings import PictureSettings


@dataclass(frozen=True)
class PictureRequest(Options):
    """The query of `POST /v1/upscale`."""

    settings: PictureSettings = group(PictureSettings)
    format: Format | None = option(None, "Of the result; as the picture came by default, else png.")
    quality: int = option(QUALITY, "Of JPEG and WebP.", least=1, most=100)

    def format_for(self, photograph: Photograph, scale: int) -> FileFormat:
        """The format of the file that answers with a photograph, `scale` times as large.

        Raises:
            RequestError: when it cannot hold that.
        """
        by_name = {format.name: format for format in FORMATS.values()}
        format = FORMATS[self.format] if self.format else by_name.get(photograph.format, FORMATS["png"])
        width, height = (side * scale for side in photograph.size)
        if problem := fit_problem(format, width, height, photograph.transparent):
            raise RequestError(problem)
        return format


@dataclass(frozen=True)
class Parameter:
    """One parameter of a query: a field of a class of options, or of one of its groups."""

    path: str
    """As `options.read` names the field."""
    info: OptionInfo
    default: Any

    @property
    def name(self) -> str:
        """As the query names it."""
        return self.path.rpartition(".")[2]

    def value_of(self, text: str) -> object:
        """Read it from the query; raises `RequestError` for what is no number where one must be."""
        return self.info.value_of(self.name, text)

    def described(self) -> dict[str, Any]:
        """As OpenAPI describes it."""
        kinds = {int: "integer", float: "number"}
        schema: dict[str, Any] = {"type": kinds.get(self.info.type, "string")}
        if get_origin(self.info.type) is Literal:
            schema["enum"] = list(get_args(self.info.type))
        bounds = {"minimum": self.info.least, "maximum": self.info.most}
        schema |= {name: end for name, end in bounds.items() if abs(end) != float("inf")}
        if self.default is not None and self.default is not MISSING:
            schema["default"] = self.default
        return {"name": self.name, "in": "query", "description": self.info.help, "schema": schema}


def parameters_of(cls: type[Options]) -> Iterator[Parameter]:
    """All parameters of a class of options, in the order of its fields; those of a group where it stands."""
    return starmap(Parameter, options_of(cls))


def read_texts(cls: type[T], pairs: Iterable[tuple[str, str]]) -> T:
    """Make options of names and texts, such as a query has.

    Raises:
        RequestError: naming everything that is wrong: unknown and repeated names, values out of range.
    """
    known = {parameter.name: parameter for parameter in parameters_of(cls)}
    values: dict[str, object] = {}
    problems: list[str] = []
    for name, text in pairs:
        if name not in known:
            problems.append(f"unknown parameter {name[:LONGEST_QUOTE]!r}, expected {', '.join(known)}")
        elif known[name].path in values:
            problems.append(f"{name} is given more than once")
        else:
            try:
                values[known[name].path] = known[name].value_of(text)
            except RequestError as error:
                problems.append(str(error))
    refuse(problems)
    return read(cls, values)
