"""Our autoencoders, the paper's and the light one: encode, decode and train 2 clips of 17 x 128 x 128, and code 32 images.

`convolution_share` is the time of the convolutions alone, without bias and channels-last, over the time of the whole.
"""

from functools import partial

from benchmarks.gpu.autoencoders import measure_coding, measure_training
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.experiments import vae_config
from walt_pl.models.vae import VAE

KINDS = {"paper": "ucf101/vae", "light": "ucf101/vae_light"}


def measure(bench: Bench) -> None:
    for name, experiment in KINDS.items():
        build = partial(_build, experiment, bench)
        measure_coding(bench, name, build, lambda vae, x: vae.encode(x).mean, lambda vae, z: vae.decode(z))
        measure_training(bench, name, build)


def _build(experiment: str, bench: Bench) -> VAE:
    with bench.device:
        return VAE(vae_config(experiment, bench.quick))
