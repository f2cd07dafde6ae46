"""The application: the page, and what it asks for as JSON. `/docs` describes it, from files that are installed here.

POST /api/sample, /api/complete          images, drawn together with those of other requests
POST /api/sample/stream, .../stream      the same as lines of JSON, while they are drawn
POST /api/encode, /api/decode, /api/score, /api/nearest
GET  /api/facts, /api/palette, /api/rows/SPLIT/ROW
"""

from typing import Annotated

from anyio import to_thread
from fastapi import FastAPI, Path, Request
from fastapi.responses import StreamingResponse

from vqgpt.runtime.process import installed_version
from vqgpt.serve import schema
from vqgpt.serve.answers import checked, drawn_images, grids_of, notices_of, prepared, shown
from vqgpt.serve.guards import App, Guards
from vqgpt.serve.pages import PROBLEMS, STREAMED, add_answers_to_errors, add_pages, describe_with_limits
from vqgpt.serve.pair import Decode, Encode, Pair, Score
from vqgpt.serve.studio import WITHOUT_CLASS, Studio, streamed, written


def application(pair: Pair, most_images: int, most_waiting: int, token: str | None) -> tuple[App, Studio]:
    """The application behind its guards, and what works for it."""
    studio = Studio(pair, most_images, most_waiting)
    limits = {"images": most_images, "waiting": most_waiting, "pixels": schema.MOST_PIXELS}
    facts = schema.Facts(**pair.facts(), limits=limits, version=installed_version("vqgpt") or "unknown")
    app = FastAPI(
        title=f"vqgpt serve {pair.name}",
        version=facts.version,
        description="Sampling, completing, scoring, encoding and decoding with a trained GPT and its VQ-GAN.",
        docs_url=None,
        redoc_url=None,
        responses=PROBLEMS,
    )
    add_answers_to_errors(app)
    add_pages(app)

    async def image_of_row(split: str, row: int, view: int, request: Request) -> schema.ShownImage:
        codes, classes = await to_thread.run_sync(pair.row, split, row, view, limiter=studio.readers)
        images = await studio.done(Decode(codes=codes), 1, request)
        return (await written(images, shown, images, codes))[0].model_copy(update={"classes": classes})

    @app.get("/api/facts")
    async def get_facts() -> schema.Facts:
        """What is served: its classes, grid, rows and limits."""
        return facts

    @app.get("/api/palette")
    async def get_palette() -> schema.Palette:
        """The mean colour of each code."""
        colours = await studio.search(lambda: pair.colours)
        return schema.Palette(colours=["#" + (bytes(each) * 3)[:3].hex() for each in colours])

    @app.get("/api/rows/{split}/{row}")
    async def get_row(
        request: Request,
        split: Annotated[str, Path(max_length=100)],
        row: Annotated[int, Path(ge=0, le=schema.LARGEST_NUMBER)],
    ) -> schema.ShownImage:
        """A row of the token cache, as its codes show it."""
        return await image_of_row(split, row, 0, request)

    @app.post("/api/sample")
    async def sample(asked: schema.SampleRequest, request: Request) -> schema.DrawnImages:
        """Draw images: image i of a seed is that of `vqgpt sample` with the same settings."""
        task = await studio.draw(asked)
        drawn = await studio.done(task, asked.num_samples, request)
        return schema.DrawnImages(images=await written(drawn.images, drawn_images, pair, task, drawn))

    @app.post("/api/complete")
    async def complete(asked: schema.CompleteRequest, request: Request) -> schema.DrawnImages:
        """Draw the unknown codes of a grid. A GPT that was trained in any order sees all known ones."""
        known = grids_of([asked.known], pair.grid)[0]
        task = await studio.draw(asked, known)
        drawn = await studio.done(task, asked.num_samples, request)
        images = await written(drawn.images, drawn_images, pair, task, drawn)
        return schema.DrawnImages(images=images, notices=notices_of(pair, known))

    @app.post("/api/sample/stream", response_class=StreamingResponse, responses=STREAMED)
    async def sample_stream(asked: schema.SampleRequest) -> StreamingResponse:
        """Draw images, and tell of each while it is drawn."""
        return streamed(studio, await studio.draw(asked), [])

    @app.post("/api/complete/stream", response_class=StreamingResponse, responses=STREAMED)
    async def complete_stream(asked: schema.CompleteRequest) -> StreamingResponse:
        """Draw the unknown codes of a grid, and tell of each while it is drawn."""
        known = grids_of([asked.known], pair.grid)[0]
        return streamed(studio, await studio.draw(asked, known), notices_of(pair, known))

    @app.post("/api/encode")
    async def encode(asked: schema.EncodeRequest, request: Request) -> schema.Images:
        """The codes of images, which are resized and cropped as those of the training; each as its codes show it."""
        studio.check_number(len(asked.images))
        images = await to_thread.run_sync(prepared, pair, asked.images, limiter=studio.readers)
        codes = await studio.done(Encode(images=images), len(images), request)
        decoded = await studio.done(Decode(codes=codes), len(codes), request)
        return schema.Images(images=await written(decoded, shown, decoded, codes))

    @app.post("/api/decode")
    async def decode(asked: schema.DecodeRequest, request: Request) -> schema.Images:
        """The images that codes stand for."""
        studio.check_number(len(asked.codes))
        codes = checked(pair, grids_of(asked.codes, pair.grid))
        images = await studio.done(Decode(codes=codes), len(codes), request)
        return schema.Images(images=await written(images, shown, images, codes))

    @app.post("/api/score")
    async def score(asked: schema.ScoreRequest, request: Request) -> schema.Scores:
        """How likely the GPT finds grids of codes, in bits of each token given those before it in its order."""
        studio.check_number(len(asked.codes))
        codes = checked(pair, grids_of(asked.codes, pair.grid))
        words = asked.classes or [WITHOUT_CLASS]
        labels = await to_thread.run_sync(pair.generator.labels, range(len(codes)), words, limiter=studio.readers)
        bits = await studio.done(Score(codes=codes, labels=labels), len(codes), request)
        return schema.Scores(bits_per_token=bits.mean(axis=(1, 2)).tolist(), bits=bits.tolist())

    @app.post("/api/nearest")
    async def nearest(asked: schema.NearestRequest, request: Request) -> schema.Nearest:
        """The training row whose codes differ in the fewest tokens."""
        codes = checked(pair, grids_of([asked.codes], pair.grid))
        row, view, distance = await studio.search(lambda: pair.nearest_row(codes))
        return schema.Nearest(
            split=pair.training_split,
            row=row,
            view=pair.cache.description.views[view],
            differing_tokens=distance,
            tokens=codes.size,
            image=await image_of_row(pair.training_split, row, view, request),
        )

    describe_with_limits(app, facts)
    return Guards(app=app, token=token), studio
