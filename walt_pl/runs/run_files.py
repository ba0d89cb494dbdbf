"""Names of all files that this program writes into the folder of a run: only they are removed (`walt_pl.removal`)."""

from walt_pl.runs.card import MODEL_CARD, OWN
from walt_pl.runs.stage_names import STAGES

_STAGE = "(?:" + "|".join(pattern for pattern, *_ in STAGES) + ")"
_ARTIFACT = "(?:" + "|".join(name.replace(".", r"\.") for name in (*OWN, MODEL_CARD)) + ")"

CHECKPOINT_FILES = (
    r"checkpoint\.json",
    r"ema\.safetensors",
    r"state\.ckpt",
    r"state\.ckpt/latest",
    r"state\.ckpt/checkpoint/[^/]+\.pt",
    r"state\.ckpt\.resharded/.+",
)
"""Files of a checkpoint, by their paths in its folder (regular expressions)."""
RESHARDED_FILES = (r"(checkpoint/)?latest[^/]*", r"checkpoint/.+")
"""Files of a checkpoint that is put together for another number of ranks."""
SHARED_FILE = r"\.shared-[0-9a-f]{16}"
"""File that the first machine of a training writes to see whether the others find it."""
RUN_FILES = (
    r"manifest\.(json|lock)",
    SHARED_FILE,
    r"reconstructions\.(png|gif)",
    r"prediction\.(png|json)",
    r"seconds\.json",
    r"report\.html",
    r"peak_kib\.txt",
    rf"{_STAGE}/{_ARTIFACT}",
    rf"\.{_STAGE}\.(new|old)/{_ARTIFACT}",
    rf"\.{_STAGE}\.lock",
    r"samples/clip(-\d+)?(_\d{3,})?\.(mp4|gif|png)",
    r"samples/\.clip(-\d+)?\.mp4\.lock",
    rf"metrics/{_STAGE}_[\w.-]+\.json",
    rf"training/{_STAGE}/logs/metrics/events\.out\.tfevents\.[^/]+",
    r"demo/(samples\.(png|gif)|(summary|seconds)\.json)",
    r"cache/[^/]+/(videos|images)/(\d{5,}\.f16|meta\.json|items\.i64|\.lock)",
    r"cache/metrics/[0-9a-f]{64}/(description\.json|rows\.safetensors|blocks/b\d+-\d{8}\.safetensors)",
    r"cache/samples/[0-9a-f]{64}\.safetensors",
    r"cache/text[^/]*/([^/]+\.(safetensors|json))",
    r"cache/[^/]+\.json",
    *(rf"training/{_STAGE}/checkpoints/step=\d{{8,}}(\.part)?/{name}" for name in CHECKPOINT_FILES),
    rf"training/{_STAGE}/(progress\.json|tokenizer\.model|words\.txt|config(_\d+)?\.yaml|prompts(_\d+)?\.txt)",
    rf"training/{_STAGE}/incidents/step=\d{{8,}}\.json",
    rf"training/{_STAGE}/(logs|lightning_logs)/version_\d+/(hparams\.yaml|events\.out\.tfevents\.[^/]+)",
    rf"training/{_STAGE}/(logs|lightning_logs)/version_\d+/(config(_\d+)?\.yaml|prompts(_\d+)?\.txt|(data|start)(_\d+)?\.json)",
    rf"training/{_STAGE}/logs/version_\d+/(metrics\.csv|wandb/(offline-)?run-\d{{8}}_\d{{6}}-[\w.-]+/.+)",
    rf"training/{_STAGE}/logs/((wandb|mlflow)_run_id|mlflow/(mlflow\.db|artifacts/.+))",
)
"""Files of a run, by their paths in its folder (regular expressions)."""
