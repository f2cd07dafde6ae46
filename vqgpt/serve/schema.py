"""What is sent over HTTP: the bodies of requests, with their limits, and of answers. Pydantic reads and describes them.

Images travel as PNG files in base64, codes as lists of grid rows. Knows no network.
"""

import base64
import binascii
from typing import Annotated, Any, Literal, get_args

from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field

from vqgpt.data.decoding import BrokenImageError, decode
from vqgpt.errors import UsageError
from vqgpt.gpt.order import Order

LARGEST_NUMBER = 2**53 - 1  # that JavaScript counts exactly
MOST_CLASSES = 100  # in a request
LONGEST_SIDE = 1024  # of a grid
MOST_IMAGES = 64  # to encode, decode or score in a request
MOST_PIXELS = 16_000_000  # of the images that are sent together
LONGEST_WORD = 300
MOST_DRAWN = 4096  # images in a request, whatever the server allows


def _whole(value: Any) -> Any:
    """2.0 is a whole number in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
Word = Annotated[str, Field(max_length=LONGEST_WORD)] | Annotated[int, Field(ge=-1, le=LARGEST_NUMBER), WHOLE]
Row = Annotated[list[Annotated[int, Field(ge=-1, le=65_535), WHOLE]], Field(max_length=LONGEST_SIDE), FailFast()]
Grid = Annotated[list[Row], Field(max_length=LONGEST_SIDE), FailFast()]
Grids = Annotated[list[Grid], Field(min_length=1, max_length=MOST_IMAGES), FailFast()]
Count = Annotated[int, Field(ge=1, le=MOST_DRAWN), WHOLE]
Number = Annotated[int, Field(ge=0, le=LARGEST_NUMBER - MOST_DRAWN), WHOLE]
TopK = Annotated[int, Field(ge=1, le=LARGEST_NUMBER), WHOLE]
Classes = Annotated[list[Word], Field(max_length=MOST_CLASSES), FailFast()]
Base64 = Annotated[str, Field(description="A PNG, JPEG or other image file, in base64; a data: URL is taken too.")]


class UnfitError(UsageError):
    """A body that is not as it is described."""


class Body(BaseModel):
    """A body without further fields, NaN or text for numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True, frozen=True)


class SampleRequest(Body):
    """Images of a seed, as `vqgpt sample` draws them."""

    classes: Classes = Field([], description="Names or numbers, in turn; none for all that the GPT was trained on.")
    num_samples: Count = Field(16, description="Images to draw; the server may allow fewer.")
    first: Number = Field(0, description="The number of the first image of the seed.")
    seed: Number = 0
    temperature: float = Field(1.0, ge=0, le=1000)
    top_k: TopK | None = None
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    cfg_scale: float = Field(1.0, ge=0, le=1000)
    cfg_schedule: Literal["constant", "linear", "power-cosine"] = "constant"
    cfg_power: float = Field(1.0, gt=0, le=1000)
    draw_order: Literal["s-pattern", "raster", "hilbert", "spiral", "random"] | None = None


assert set(get_args(get_args(SampleRequest.model_fields["draw_order"].annotation)[0])) == set(get_args(Order))


class CompleteRequest(SampleRequest):
    """Completions of a grid of codes, of which some are known."""

    known: Grid = Field(description="A grid of codes, -1 where one is to be drawn.")
    classes: Classes = Field([], description="Names or numbers, in turn; without any, no class.")


class EncodeRequest(Body):
    """Images to encode."""

    images: list[Base64] = Field(min_length=1, max_length=MOST_IMAGES)


class DecodeRequest(Body):
    """Grids of codes to decode."""

    codes: Grids


class ScoreRequest(DecodeRequest):
    """Grids of codes to score."""

    classes: Classes = Field([], description="Names or numbers, in turn; without any, no class.")


class NearestRequest(Body):
    """A grid of codes whose nearest training row is looked for."""

    codes: Grid


class ShownImage(BaseModel):
    """An image, its codes, and what is known of it."""

    png: str
    codes: list[list[int]]
    classes: list[str] = []


class DrawnImage(ShownImage):
    """An image that was drawn: number `number` of a seed."""

    seed: int
    number: int
    bits_per_token: float


class Images(BaseModel):
    """Images with their codes."""

    images: list[ShownImage]


class DrawnImages(BaseModel):
    """Images that were drawn, and what is to be said of them."""

    images: list[DrawnImage]
    notices: list[str] = []


class Scores(BaseModel):
    """Of each grid: its bits per token, and the bits of each token given those before it."""

    bits_per_token: list[float]
    bits: list[list[list[float]]]


class Nearest(BaseModel):
    """The training row that differs in the fewest tokens."""

    split: str
    row: int
    view: str
    differing_tokens: int
    tokens: int
    image: ShownImage


class Palette(BaseModel):
    """The mean colour of each code, as #rrggbb; none where there are very many."""

    colours: list[str]


class Facts(BaseModel):
    """What is served."""

    name: str
    dataset: str
    condition: Literal["none", "class", "bits"]
    classes: list[str]
    classes_seen: list[int]
    knows_unlabelled: bool
    can_be_guided: bool
    order: str
    any_order: bool
    grid: list[int]
    codebook_size: int
    image_size: list[int]
    image_channels: int
    rows: dict[str, int]
    defaults: dict[str, Any]
    limits: dict[str, int]
    version: str


class Problem(BaseModel):
    """What is wrong, and what to do about it."""

    error: str
    hint: str


def image_of(text: str, background: tuple[int, int, int], most_pixels: int) -> Image.Image:
    """The image that was sent, grey or RGB. Raises UnfitError for what is none, or too large."""
    _, _, content = text.rpartition(",") if text.startswith("data:") else ("", "", text)
    try:
        data = base64.b64decode(content, validate=True)
        return decode(data, background, most_pixels)
    except (binascii.Error, ValueError):
        raise UnfitError("an image is not base64", "send the bytes of an image file in base64") from None
    except BrokenImageError as error:
        raise UnfitError(f"an image cannot be used: {error}", "send a PNG or JPEG file") from None
