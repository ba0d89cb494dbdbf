"""Sample many videos of a cascade. On a GPU, the decoder runs beside the sampling of the next ones."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from walt_pl.blocks.transfer import HostCopy
from walt_pl.sampling.cascade import Cascade, SampleRequest, SamplingConfig
from walt_pl.sampling.compiled_sampling import compile_for
from walt_pl.sampling.sampled_video import SampledVideo

Part = TypeVar("Part")
Sampled = TypeVar("Sampled")
Made = TypeVar("Made")


def sample_videos(
    cascade: Cascade,
    requests: Iterable[SampleRequest],
    clips: int,
    sampling: SamplingConfig,
    frames: int,
    each_step: Callable[[], None] = lambda: None,
) -> Iterator[Tensor]:
    """Sample a video of each request, as `Cascade.video` does, and free the CUDA graphs in the end.

    A CPU makes them one after the other. On a GPU, the decoder has a stream of its own, and many clips are sampled with compiled layers
    (see `compile_for`). The videos come in the same order. There, the GPU holds the latents of two requests, and the memory of the
    decoder beside that of the denoiser. The host holds the pixels of two.

    Args:
        cascade: stages to run.
        requests: conditions, seeds and context frames, a batch each. Each is taken when its sampling begins.
        clips: number of clips of the whole work, which decides whether compilation pays; an evaluation may have some of them already.
        sampling: settings.
        frames: length in pixel frames.
        each_step: called after every sampling step; on a GPU when the step is in its queue.

    Yields:
        Pixels [b 3 frames h w] in -1..1, on the CPU.
    """
    try:
        if cascade.device.type != "cuda":
            for request in requests:
                yield cascade.video(request, sampling, frames, each_step)
            return
        compile_for(clips * cascade.num_segments(frames), cascade.samplers.values(), cascade.device)
        decoder = StreamDecoder(cascade, sampling)
        yield from overlap(requests, lambda request: cascade.sample_segments(request, sampling, frames, each_step), decoder.start)
    finally:
        cascade.release_graphs()


def overlap(
    parts: Iterable[Part], sample: Callable[[Part], Sampled], start_decoding: Callable[[Sampled], Callable[[], Made]]
) -> Iterator[Made]:
    """Yield the results of all parts in order, while the next part is in work.

    While the consumer writes a part, the next one is decoded already: results of two are held at a time.

    A part that fails does not take the one before with it.

    Args:
        parts: to sample.
        sample: puts the sampling of a part in the queue of the device.
        start_decoding: puts the decoding of a sampled part in another queue, and returns a function that waits for the result.
    """
    waiting: list[Callable[[], Made]] = []
    coming = iter(parts)
    while True:
        try:
            # Before the one before is yielded: its consumer may take long. The part itself may fail, too, where it is made here.
            following = [start_decoding(sample(part)) for part in islice(coming, 1)]
        except Exception:  # whatever it is, it is raised after the result that is already there
            for wait in waiting:
                yield wait()
            raise
        for wait in waiting:
            yield wait()
        if not following:
            return
        waiting = following


class StreamDecoder:
    """Decodes on a CUDA stream of its own.

    Args:
        cascade: with the autoencoder.
        sampling: settings of the decoder.
    """

    def __init__(self, cascade: Cascade, sampling: SamplingConfig) -> None:
        self.cascade = cascade
        self.sampling = sampling
        self.stream = torch.cuda.Stream(cascade.device)

    def start(self, sampled: SampledVideo) -> Callable[[], Tensor]:
        """Start to decode the last segment of a video, and return a function that waits for the video."""
        self.stream.wait_stream(torch.cuda.current_stream(self.cascade.device))
        # The allocator of the sampling's stream may not give the memory away before the decoder has read it.
        sampled.latents.record_stream(self.stream)
        with torch.cuda.stream(self.stream):
            clips = [HostCopy(self.cascade.decode_clip(z, self.sampling)) for z in sampled.latents.split(1)]
        return lambda: sampled.join(torch.cat([clip.read() for clip in clips]))
