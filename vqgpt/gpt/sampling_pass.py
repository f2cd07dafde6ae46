"""A pass of sampling: images that are drawn at once, token by token.

    labels (n, ...), uniforms (B, T), n at most B -> tokens (n, T) int64, log_prob (n,) float32 in nats

What a token needs lies in buffers on the device, and nothing waits for it: on a CUDA device all steps but the first,
draws included, are replays of CUDA graphs. With guidance, the decoder has a second row for each image, without its
label. Letters: B images, R rows of the decoder, T positions.
Knows nothing of images, the VQ-GAN and token caches.
"""

import threading

import torch
from torch import Tensor

from vqgpt.gpt.decoding import CompiledDecoder, Decoder
from vqgpt.gpt.drawing import draw, guidance_scale, guide
from vqgpt.gpt.graphed_pass import GraphedSteps
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import SamplingOptions


class SamplingPass:
    """Draws up to B images at a time, as often as asked. Used from one thread at a time.

    With `completes`, some tokens are given and not drawn.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: GPT,
        decoder: Decoder | CompiledDecoder,
        images: int,
        options: SamplingOptions,
        completes: bool,
    ) -> None:
        self.model, self.decoder, self.images, self.options = model, decoder, images, options
        self.device, self.positions = next(model.parameters()).device, model.config.block_size
        shape = (self.positions, images)
        self.guided = options.cfg_scale != 1
        self.token = torch.zeros(2 * images if self.guided else images, dtype=torch.int64, device=self.device)
        self.uniforms = torch.zeros(shape, device=self.device)
        self.given = torch.zeros(shape, dtype=torch.int64, device=self.device) if completes else None
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.log_prob = torch.zeros(images, 1, device=self.device)
        scales = [guidance_scale(position, self.positions, options) for position in range(self.positions)]
        self.scales = torch.tensor(scales, device=self.device)
        self.graphs: GraphedSteps | None = None
        if self.device.type == "cuda":
            self.graphs = GraphedSteps(self.step_in_graph, self.positions, self.device)

    @torch.inference_mode()
    def run(
        self, labels: Tensor, uniforms: Tensor, given: Tensor | None, ended: threading.Event
    ) -> tuple[Tensor, Tensor]:
        """Labels (n, ...) as `GPT.start` takes them, uniforms (B, T) -> tokens (n, T), log_prob (n,), on the CPU.

        `given` (n, T) are tokens that are not drawn, -1 where they are. Once it has `ended`, nobody waits for a result.
        """
        untold = 0 if labels.ndim == 2 else -1
        start, bits = self.model.start(_padded(labels, len(self.token), untold).to(self.device))
        self.token.copy_(start[:, 0])
        self.uniforms.copy_(uniforms.t())
        if self.given is not None and given is not None:
            self.given.copy_(_padded(given, self.images, -1).t())
        self.log_prob.zero_()
        self.draw(self.decoder.step(self.token, 0, bits), 0)
        if self.graphs:
            self.graphs.start(1)
        for position in range(1, self.positions):
            if ended.is_set():
                break
            if self.graphs:
                self.graphs.replay(position)
            else:
                self.draw(self.decoder.step(self.token, position), position)
        tokens, log_prob = self.tokens.t()[: len(labels)], self.log_prob[: len(labels), 0].clamp(max=0)
        return tokens.to("cpu", copy=True), log_prob.cpu()

    def step_in_graph(self, position: Tensor, seen: int) -> None:
        """The step of a position (1,) on the device, below `seen`, from buffers to buffers."""
        assert isinstance(self.decoder, Decoder)
        self.draw(self.decoder.step_in_graph(self.token, position, seen), position)

    def draw(self, logits: Tensor, position: int | Tensor) -> None:
        """Logits (R, K) -> the images' tokens at a position, a number or (1,): kept, and read by the next step."""
        own = logits[: self.images]
        if self.guided:
            logits = guide(own, logits[self.images :], self.scales[position])
        token = draw(logits, self.uniforms[position].flatten(), self.options)
        if self.given is not None:
            given = self.given[position].flatten()
            token = torch.where(given < 0, token, given)
        self.tokens[position] = token
        self.log_prob += own.log_softmax(dim=-1).gather(1, token[:, None])
        self.token.view(-1, self.images)[:] = token


def _padded(values: Tensor, rows: int, untold: int) -> Tensor:
    """Rows (n, ...) filled up to as many with what says nothing: the unconditional half of guidance, and spare rows."""
    return torch.cat([values, values.new_full((rows - len(values), *values.shape[1:]), untold)])
