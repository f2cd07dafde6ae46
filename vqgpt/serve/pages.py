"""The page and its files, the description of the interface, and what errors look like. All files are here."""

from importlib.resources import files
from typing import Any

import fastapi_offline
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from vqgpt.errors import MissingDataError, UsageError, VQGPTError, printable
from vqgpt.serve import schema
from vqgpt.serve.batching import QueueFullError
from vqgpt.serve.guards import problem

PAGE = files("vqgpt.serve") / "page"
THEME = files("vqgpt.pictures") / "theme.css"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.Problem, "description": text}
    for status, text in {
        400: "The body is no JSON text",
        401: "The token is missing or wrong",
        403: "The request comes from elsewhere",
        404: "There is no such thing",
        409: "What is served cannot do what is asked for",
        413: "The body is too large",
        415: "The body is not JSON",
        422: "The body is not as described",
        429: "Too much is waiting",
    }.items()
}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A line of JSON for each event: `notice`; `progress` with `drawn` of `tokens` and the `codes` "
        "so far, -1 for none yet; then `image` for each image, or `problem`.",
        "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
    }
}


def add_answers_to_errors(app: FastAPI) -> None:
    """Every error is a `Problem`."""

    @app.exception_handler(RequestValidationError)
    async def unfit(request: Request, error: RequestValidationError) -> JSONResponse:
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if request.method == "POST" and kind.lower() != "application/json":
            return problem(415, f"the body is {kind or 'of no kind'}, not JSON", "send Content-Type: application/json")
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
        return problem(422, printable(f"{place}: {first['msg']}"), "/docs describes what can be sent")

    @app.exception_handler(VQGPTError)
    async def refused(request: Request, error: VQGPTError) -> JSONResponse:
        match error:
            case schema.UnfitError():
                status = 422
            case MissingDataError():
                status = 404
            case UsageError():
                status = 409
            case _:
                status = 500
        return problem(status, error.message, error.hint)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        return problem(
            error.status_code, str(error.detail), "/docs describes what there is", (error.headers or {}).items()
        )

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return problem(500, "the server failed", "its terminal says why; report it as a bug")

    @app.exception_handler(QueueFullError)
    async def full(request: Request, error: QueueFullError) -> JSONResponse:
        return problem(429, "too much is waiting", "ask again in a moment", [("retry-after", "1")])


def add_pages(app: FastAPI) -> None:
    """The page, its files, and the description of the interface."""
    own = {path.name: path for path in PAGE.iterdir() if path.name.endswith(tuple(KINDS))} | {"theme.css": THEME}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def file_of_page(name: str) -> Response:
        if name not in own:
            raise HTTPException(404, "there is no such file")
        return file(name)

    def file(name: str) -> Response:
        return Response(own[name].read_bytes(), media_type=KINDS[f".{name.rpartition('.')[2]}"])

    app.mount("/swagger", StaticFiles(packages=[(fastapi_offline.__name__, "static")]), name="swagger")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        answer = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url="/swagger/swagger-ui-bundle.js",
            swagger_css_url="/swagger/swagger-ui.css",
            swagger_favicon_url="/swagger/favicon.png",
        )
        answer.headers["content-security-policy"] = DOCS_POLICY
        return answer


def describe_with_limits(app: FastAPI, facts: schema.Facts) -> None:
    """Make the description that of this pair: the size of a grid, how many codes there are, what orders it has."""
    description = app.openapi()
    bodies = {
        name: body["properties"] for name, body in description["components"]["schemas"].items() if "properties" in body
    }
    grid, grid_with_holes = (
        {
            "type": "array",
            "minItems": facts.grid[0],
            "maxItems": facts.grid[0],
            "items": {
                "type": "array",
                "minItems": facts.grid[1],
                "maxItems": facts.grid[1],
                "items": {"type": "integer", "minimum": least, "maximum": facts.codebook_size - 1},
            },
        }
        for least in (0, -1)
    )
    most = min(schema.MOST_IMAGES, facts.limits["images"])
    bodies["EncodeRequest"]["images"] |= {"maxItems": most}
    bodies["NearestRequest"]["codes"] = grid
    bodies["CompleteRequest"]["known"] |= grid_with_holes
    for name in ("DecodeRequest", "ScoreRequest"):
        bodies[name]["codes"] |= {"items": grid, "maxItems": most}
    for name in ("SampleRequest", "CompleteRequest"):
        bodies[name]["num_samples"] |= {"maximum": facts.limits["images"]}
        if not facts.any_order:
            bodies[name]["draw_order"] = {"enum": [None, facts.order], "title": "Draw Order"}
