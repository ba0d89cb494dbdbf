"""Pretrained text encoders, frozen: T5, CLIP's text tower, and every model that transformers' AutoModel reads.

The encoder is not an nn.Module. A stage that uses it therefore keeps it out of its parameters, checkpoints and artifact.
"""

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from walt_pl.blocks.cudnn_attention import disable_cudnn_attention
from walt_pl.text.encoder_folder import closed_folder
from walt_pl.text.small_encoder import PretrainedTextConfig

TOKENIZERS = ("tokenizer.json", "*.model", "vocab.txt", "vocab.json")
SMALL = ("config.json", *TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
WEIGHTS = ("*.safetensors", "*.bin")
"""Patterns of weight files; the first one that matches in a folder is read. `.bin` is a pickle, of which only tensors are read."""

_PACKAGES = {"transformers": "transformers==5.23.0", "open_clip": "open-clip-torch==3.3.0"}


# ---- Files -----------------------------------------------------------------------------------------------------------


def files_of(config: PretrainedTextConfig, download: bool = True) -> dict[str, Path]:
    """Return the files of an encoder by name: configuration, tokenizer and weights. For a hub name, they are in the local snapshot.

    Args:
        config: the encoder.
        download: whether a hub name without a local snapshot is downloaded. False for a name that no person has typed, such as one in
            an artifact.

    Raises:
        ValueError: a file is missing; the message has the place and the way to get it.
    """
    if config.kind == "clip":
        model, _, file = config.path.partition("@")
        if not model or not file:
            raise ValueError(f"text.path: clip wants MODEL@FILE, such as ViT-L-14@/weights/vit_l_14.safetensors, got {config.path}")
        if not Path(file).expanduser().is_file():
            raise ValueError(f"text.path: no weight file {Path(file).absolute()} (for the open_clip model {model}); copy it there")
        return {model: Path(file).expanduser()}
    folder = _folder(config.path, download)
    found = sorted(path for path in folder.iterdir() if path.is_file())
    weights = next((named for pattern in WEIGHTS if (named := [p for p in found if fnmatch(p.name, pattern)])), [])
    small = [p for p in found if any(fnmatch(p.name, pattern) for pattern in SMALL)]
    index = [p for p in found if weights and p.name.endswith(f"{weights[0].suffix}.index.json")]
    # Without these files, transformers silently uses an empty vocabulary or random weights.
    lacks = [] if (folder / "config.json").is_file() else ["config.json"]
    lacks += [] if any(fnmatch(p.name, pattern) for p in small for pattern in TOKENIZERS) else [f"a tokenizer ({', '.join(TOKENIZERS)})"]
    lacks += [] if weights else [f"weights ({' or '.join(WEIGHTS)})"]
    if lacks:
        listed = ", ".join(p.name for p in found) or "nothing"
        raise ValueError(
            f"text.path: {folder} is no {config.kind} text encoder, it lacks {' and '.join(lacks)} (found: {listed}); "
            "give the folder that save_pretrained or hf download wrote"
        )
    return {path.name: path for path in (*small, *index, *weights)}


def _folder(path: str, download: bool) -> Path:
    """Return a local folder unchanged, and for a hub name the folder of its local snapshot.

    A missing snapshot is downloaded where `download` allows it.

    Raises:
        ValueError: there is no such folder or snapshot, or the download fails or has no weights.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise ValueError(f"text.path: there is no folder {local.absolute()}; copy the text encoder there, or name the folder it lies in")
    hub = _package("huggingface_hub")
    try:
        # Try the local snapshot first: a newer revision on the hub would be another encoder.
        for offline in (True, False) if download else (True,):
            for pattern in WEIGHTS:
                try:
                    folder = Path(hub.snapshot_download(path, allow_patterns=[*SMALL, "*.index.json", pattern], local_files_only=offline))
                except hub.errors.LocalEntryNotFoundError:
                    if offline:
                        continue
                    raise
                if any(folder.glob(pattern)):
                    return folder
    except (OSError, ValueError) as error:
        raise ValueError(
            f"text.path: there is no folder {local.absolute()}, and the hub gave no {path} ({str(error).splitlines()[0]}); "
            f"where there is a network: hf download {path} --local-dir DIR, then copy DIR here and give text.path DIR"
        ) from error
    if not download:
        raise ValueError(
            f"text.path: there is no folder {local.absolute()} and no snapshot of {path} on this machine, and a name that is recorded in "
            f"an artifact is not downloaded: hf download {path} --local-dir DIR, if you trust it"
        )
    raise ValueError(f"text.path: {path} on the hub has no weights ({' or '.join(WEIGHTS)})")


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"text.kind needs the package {name} ({error}): pip install {_PACKAGES.get(name, name)}") from error


# ---- Libraries -------------------------------------------------------------------------------------------------------


class _Library(Protocol):
    """Interface to a library of encoders: token ids of captions, and token states of ids."""

    model: nn.Module
    limit: int
    """Largest number of tokens of a caption."""
    pad: int
    """Id of the padding token."""

    def pieces(self, caption: str) -> list[int]:
        """Return all token ids of a caption, with the start and end tokens."""
        ...

    def tokenize(self, caption: str) -> list[int]:
        """Return at most `limit` token ids of a caption, with the end token."""
        ...

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return token states [s l e] of padded ids [s l] and their mask [s l]."""
        ...


@contextmanager
def named_errors(what: str, place: str = "", shown: str = "") -> Iterator[None]:
    """Raise every error of a library as a ValueError. Our own begin with "text" and stay as they are.

    Args:
        what: beginning of the message.
        place: path in the library's message that the person does not know.
        shown: path that replaces it.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # each library raises errors of its own; a panic of Rust code is no Exception
        if isinstance(error, ValueError) and str(error).startswith("text"):
            raise
        text = str(error).replace(place, shown) if place else str(error)
        raise ValueError(f"text.path: {what}: {text}") from error


class _Transformers:
    def __init__(self, config: PretrainedTextConfig) -> None:
        library = _package("transformers")
        library.utils.logging.disable_progress_bar()
        files = files_of(config)
        folder = files["config.json"].parent
        kind = library.T5EncoderModel if config.kind == "t5" else library.AutoModel
        # No network, no code beside the weights, no question on standard input, and of a pickle only tensors.
        here = {"local_files_only": True, "trust_remote_code": False}
        weights = {"weights_only": True, "use_safetensors": any(name.endswith(".safetensors") for name in files)}
        with closed_folder(files) as closed, named_errors(f"{folder} cannot be read as kind {config.kind}", str(closed), str(folder)):
            self.tokenizer = library.AutoTokenizer.from_pretrained(closed, **here)
            self.model, loaded = kind.from_pretrained(
                closed, dtype=getattr(torch, config.dtype), output_loading_info=True, **here, **weights
            )
            self.limit = min(config.max_length, self.tokenizer.model_max_length)
            self.pad = self.tokenizer.pad_token_id or 0
        # transformers fills missing weights with random values. Poolers follow the token states, so they may be missing.
        missing = sorted(key for key in loaded["missing_keys"] if "pooler" not in key)
        if missing:
            raise ValueError(
                f"text.path: the weights in {folder} lack {missing[0]} and {len(missing) - 1} more; is kind {config.kind} right?"
            )
        if config.kind == "auto" and self.model.config.is_encoder_decoder:
            self.model = self.model.get_encoder()

    def pieces(self, caption: str) -> list[int]:
        return list(self.tokenizer(caption, verbose=False)["input_ids"])

    def tokenize(self, caption: str) -> list[int]:
        return list(self.tokenizer(caption, truncation=True, max_length=self.limit)["input_ids"])

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return out


class _Clip:
    pad = 0

    def __init__(self, config: PretrainedTextConfig) -> None:
        library = _package("open_clip")
        [(name, file)] = files_of(config).items()
        check_open_clip_name(name)
        with named_errors(f"{file} does not hold the weights of {name}"):
            # force_custom_text makes the text tower a separate module, so the image tower can be freed. A relative path might be one of
            # open_clip's names of weights, which it downloads.
            path = str(file.absolute())
            tower = library.create_model(name, pretrained=path, force_custom_text=True, weights_only=True).text
        tower.output_tokens = True
        self.model: nn.Module = tower.to(getattr(torch, config.dtype))
        self.context: int = tower.context_length
        self.limit = min(config.max_length, self.context)
        self.tokenizer = library.get_tokenizer(name)

    def pieces(self, caption: str) -> list[int]:
        return [self.tokenizer.sot_token_id, *self.tokenizer.encode(caption), self.tokenizer.eot_token_id]

    def tokenize(self, caption: str) -> list[int]:
        return [*self.pieces(caption)[: self.limit - 1], self.tokenizer.eot_token_id]

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        # The tower's causal mask has the full context length. Under it, words do not see the padding after them.
        padded = nn.functional.pad(ids, (0, self.context - ids.shape[1]))
        states: Tensor = self.model(padded)[1]
        return states[:, : ids.shape[1]]


def check_open_clip_name(name: str, option: str = "text.path") -> None:
    """Check that a name is one of open_clip's own models, with a tokenizer of its own.

    Args:
        name: such as ViT-L-14.
        option: option that the name was typed for, for messages.

    Raises:
        ValueError: it is not. open_clip would download hf-hub:NAME, and open local-dir:NAME.
    """
    library = _package("open_clip")
    described = library.get_model_config(name) if name in library.list_models() else None
    if described is None:
        raise ValueError(
            f"{option}: open_clip knows no model {name}; list them with: python -c 'import open_clip; print(open_clip.list_models())'"
        )
    if {"hf_tokenizer_name", "hf_model_name"} & set(described["text_cfg"]):
        raise ValueError(f"{option}: the tokenizer of {name} is no part of open_clip; use its text encoder by kind auto")


# ---- The encoder -----------------------------------------------------------------------------------------------------


class PretrainedTextEncoder:
    """Pretrained text encoder, in evaluation mode and in its own dtype under every autocast.

    Args:
        config: of the encoder.
        device: to run on.

    Raises:
        ValueError: the files are missing or do not fit, or the encoder has another width than `config.width`.
    """

    def __init__(self, config: PretrainedTextConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.width = config.width
        self.device = torch.device(device)
        self.dtype = getattr(torch, config.dtype)
        self.truncated = 0
        # The libraries draw initial weights before they load; that must not change the state of the global generator.
        with torch.random.fork_rng(devices=[]):
            self._library: _Library = _Clip(config) if config.kind == "clip" else _Transformers(config)
        self._library.model.to(self.device).eval().requires_grad_(False)
        with named_errors(f"{config.path} cannot encode a caption"):
            found = self.encode(["a"])[0].shape[-1]
        if found != config.width:
            raise ValueError(
                f"text.width is {config.width}, but {config.path} gives tokens of {found} channels; "
                f"set text.width and denoiser.text_width to {found}"
            )

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode captions.

        Returns:
            Tokens [s l e] in the encoder's dtype, and their mask [s l] (true = a word); every caption has at least one token.

        Raises:
            ValueError: a token state is not finite.
        """
        if not captions:
            none = torch.zeros(0, 1, self.width, dtype=self.dtype, device=self.device)
            return none, torch.zeros(0, 1, dtype=torch.bool, device=self.device)
        pieces = [self._pieces(caption) or [self._library.pad] for caption in captions]
        length = max(len(row) for row in pieces)
        ids = torch.tensor([row + [self._library.pad] * (length - len(row)) for row in pieces], device=self.device)
        mask = torch.tensor([[i < len(row) for i in range(length)] for row in pieces], device=self.device)
        disable_cudnn_attention()
        with torch.autocast(self.device.type, enabled=False):
            states = self._library.states(ids, mask).to(self.dtype)
        if not bool(states[mask].isfinite().all()):
            raise ValueError(f"text: {self.config.path} overflows in {self.config.dtype}; set text.dtype to bfloat16 or float32")
        return states, mask

    def _pieces(self, caption: str) -> list[int]:
        """Return the token ids of a caption, truncated to the limit. Truncated captions are counted, and the first one warns."""
        pieces = self._library.pieces(caption)
        if len(pieces) <= self._library.limit:
            return pieces
        self.truncated += 1
        if self.truncated == 1:
            warnings.warn(
                f"{self.config.path} takes {self._library.limit} tokens a caption (text.max_length {self.config.max_length}), but one has "
                f"{len(pieces)}: its end is cut off, as of every longer one",
                stacklevel=3,
            )
        return self._library.tokenize(caption)
