"""Changes of a task between two starts: the table has every key, and the comparison tells each change with both values."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pytest

from stages.base import BaseStage
from stages.super_resolution import SuperResolutionStage
from stages.vae import VAEStage
from tests.cli.test_configuration import leaves, parse
from tests.helpers.environment import ROOT
from walt_pl.cli.configuration import class_keys
from walt_pl.cli.task_changes import UNKNOWN_VALUE, Change, check_changes, compare, describe
from walt_pl.cli.task_rules import RULES, UNKNOWN, Effect, Rule, rule_of
from walt_pl.runs.checkpoint import CheckpointError
from walt_pl.runs.task_record import TASK, encode_task, flatten, read_task

RECORDED = [
    *("data.index_sha256", "data.quarantine_sha256", "data.selection_sha256", "data.classes_sha256"),
    "previews.prompts_sha256",
    *("trainer.ranks", "parents.vae", "parents.base", "tokenizer.model"),
]
"""Keys of a record beside those of the configuration."""
EXPERIMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "experiments").rglob("*.yaml")
    if path.stem in ("vae", "vae_gan", "vae_image", "base", "base_l", "base_xl", "base_l_separate", "sr1", "sr2", "base_9x16")
    and path.parent.name != "common"
)


def rules_of(key: str) -> list[Rule]:
    return [rule for rule in RULES if rule.holds_for(key)]


# ---- The table ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", EXPERIMENTS)
def test_task_rules_have_every_key_of_an_experiment_once(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    keys = set(leaves(parse(config, monkeypatch)))
    assert len(keys) > 100
    assert {key: [rule.effect for rule in rules_of(key)] for key in keys if len(rules_of(key)) != 1} == {}


@pytest.mark.parametrize("stage", [VAEStage, BaseStage, SuperResolutionStage])
def test_task_rules_have_every_argument_of_a_stage_once(stage: type) -> None:
    keys = class_keys(stage, "model")
    names = {key.name for key in keys} | {one.name for key in keys for kind in key.choices for one in class_keys(kind, key.name)}
    assert {name: len(rules_of(name)) for name in names if len(rules_of(name)) != 1} == {}


@pytest.mark.parametrize("key", RECORDED)
def test_task_rules_have_every_hash_of_a_record_once(key: str) -> None:
    assert len(rules_of(key)) == 1


def test_task_rules_of_an_unknown_key_list_it_with_a_warning() -> None:
    assert rule_of("data.of_tomorrow") is UNKNOWN and UNKNOWN.effect is Effect.WARNED


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.keys[0])
def test_task_rules_say_a_consequence(rule: Rule) -> None:
    assert len(rule.consequence) > 8 and not rule.consequence.endswith(".")


def test_task_rules_name_only_keys_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    keys = {*RECORDED, "ckpt_path", "weights_only"}
    for config in ("vae_gan", "base", "sr1"):
        keys |= set(leaves(parse(f"experiments/shapes/{config}.yaml", monkeypatch)))
    for stage in (VAEStage, BaseStage, SuperResolutionStage):
        found = class_keys(stage, "model")
        keys |= {key.name for key in found} | {one.name for key in found for kind in key.choices for one in class_keys(kind, key.name)}
    chosen = {
        "trainer.strategy.*",
        "trainer.strategy.timeout",
        "trainer.callbacks.*",
        "trainer.logger.*",
        "trainer.profiler.*",
        "trainer.plugins.*",
    }
    named = {name for rule in RULES for name in rule.keys} - chosen - {"model.discriminator"}
    assert {name for name in named if not any(Rule(Effect.LISTED, (name,), "").holds_for(key) for key in keys)} == set()


EFFECTS = {
    Effect.SILENT: [
        "run",
        "data.index",
        "data.num_workers",
        "previews.every_n_validations",
        "trainer.logger.save_dir",
        "trainer.devices",
        "trainer.strategy.timeout",
    ],
    Effect.LISTED: [
        "previews.prompts_sha256",
        "model.optimizer.lr",
        "trainer.max_steps",
        "model.diffusion.guidance.scale",
        "trainer.ranks",
    ],
    Effect.WARNED: [
        *("data.seed", "model.seed", "data.videos_per_batch", "trainer.precision", "trainer.accumulate_grad_batches", "ema.decay"),
        *("data.index_sha256", "data.quarantine_sha256", "data.flip", "data.sizes", "data.views", "model.diffusion.noise_aug_max"),
        *("spike_guard.policy", "data.of_tomorrow"),
    ],
    Effect.REFUSED: [
        *("model.diffusion.normalize_latents", "model.diffusion.objective", "model.diffusion.zero_terminal_snr", "tokenizer.model"),
        *("parents.vae", "model.text.kind"),
    ],
    Effect.UNLOADABLE: ["model.denoiser.width", "model.denoiser.depth", "model.vae.latent_channels", "model.denoiser.num_classes"],
}


@pytest.mark.parametrize(("key", "effect"), [(key, effect) for effect, keys in EFFECTS.items() for key in keys])
def test_compare_gives_a_change_the_effect_of_its_key(key: str, effect: Effect) -> None:
    changes = compare({key: 1}, {key: 2})
    assert [change.effect for change in changes] == ([] if effect is Effect.SILENT else [effect])


# ---- The comparison ----------------------------------------------------------------------------------------------------


def test_compare_of_one_task_finds_nothing() -> None:
    values = {"data.size": 64, "data.sizes": [16, 32], "model.text": None}
    assert compare(values, json.loads(json.dumps(values))) == []


def test_describe_lists_both_values_with_the_consequence_and_warns_of_what_is_not_exact() -> None:
    before = {"data.videos_per_batch": 256, "model.seed": 0, "model.optimizer.lr": 0.001}
    line, warning = describe(compare(before, {"data.videos_per_batch": 128, "model.seed": 1, "model.optimizer.lr": 0.002}), 40_000)
    assert line == (
        "changed since step 40,000: data.videos_per_batch 256 -> 128 (the order continues, in other batches), model.optimizer.lr 0.001 -> "
        "0.002 (from here on, with the moments of before), model.seed 0 -> 1 (not the noise of before)"
    )
    assert warning == (
        "from step 40,000 on this is not the training that was interrupted: another data.videos_per_batch and another model.seed"
    )


def test_describe_of_what_was_asked_for_does_not_warn() -> None:
    line, warning = describe(compare({"model.optimizer.lr": 1}, {"model.optimizer.lr": 2}), 7)
    assert line.startswith("changed since step 7: model.optimizer.lr 1 -> 2 (") and warning == ""
    assert describe([], 7) == ("", "")


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_compare_lists_a_later_end_only_where_the_learning_rate_follows_it(schedule: str) -> None:
    before = {"trainer.max_steps": 10, "model.lr_schedule": schedule}
    found = [change.key for change in compare(before, {**before, "trainer.max_steps": 20})]
    assert found == (["trainer.max_steps"] if schedule == "cosine" else [])


def test_compare_of_a_group_that_was_null_lists_its_keys() -> None:
    changes = compare({"model.text": None}, {"model.text.num_heads": 4, "model.text.max_length": 16})
    assert [(change.key, change.before, change.now) for change in changes] == [
        ("model.text.max_length", None, 16),
        ("model.text.num_heads", None, 4),
    ]


@pytest.mark.parametrize("key", ["model.diffusion.objective", "model.denoiser.width"])
def test_compare_with_a_record_that_lacks_a_key_lists_it_and_refuses_nothing(key: str) -> None:
    (change,) = compare({}, {key: "v"})
    assert change.before is UNKNOWN_VALUE and change.effect is Effect.LISTED and f"{key} (not recorded) -> v (" in str(change)
    check_changes([change], "there", allow_changed=False)


def test_change_shows_hashes_short_and_the_text_of_a_stranger_escaped() -> None:
    assert str(Change("parents.vae", "ab" * 32, "cd" * 32)).startswith("parents.vae abababababab -> cdcdcdcdcdcd (")
    shown = str(Change("data.shards", "\x1b[2J\nerror: none", "x" * 1000))
    assert "\x1b" not in shown and "\n" not in shown and len(shown) < 300


def test_check_changes_refuses_what_breaks_the_model_unless_it_is_allowed() -> None:
    changes = compare({"model.diffusion.normalize_latents": True}, {"model.diffusion.normalize_latents": False})
    told = r"there is of a model that the changes break: model.diffusion.normalize_latents true -> false \(.*--allow_changed true .*FRESH=1"
    with pytest.raises(ValueError, match=told):
        check_changes(changes, "there", allow_changed=False)
    check_changes(changes, "there", allow_changed=True)
    assert "normalize_latents true -> false" in describe(changes, 1)[0] and "normalize_latents" in describe(changes, 1)[1]


@pytest.mark.parametrize("allowed", [True, False])
def test_check_changes_always_refuses_weights_that_cannot_be_loaded(allowed: bool) -> None:
    changes = compare({"model.denoiser.width": 32}, {"model.denoiser.width": 64})
    with pytest.raises(ValueError, match=r"there cannot be loaded, changed since: model.denoiser.width 32 -> 64") as error:
        check_changes(changes, "there", allow_changed=allowed)
    assert "--allow_changed" not in str(error.value)


@pytest.mark.parametrize("key", [key for keys in (EFFECTS[Effect.LISTED], EFFECTS[Effect.WARNED]) for key in keys])
def test_check_changes_lets_everything_else_go_on(key: str) -> None:
    check_changes(compare({key: 1}, {key: 2}), "there", allow_changed=False)


# ---- The record --------------------------------------------------------------------------------------------------------


def test_flatten_names_keys_as_they_are_typed() -> None:
    config = {"model": {"class_path": "a.B", "init_args": {"x": 1, "y": {"z": None}}}, "data": {"sizes": [1, 2]}, "callbacks": {}}
    assert dict(flatten(config)) == {"model": "a.B", "model.x": 1, "model.y.z": None, "data.sizes": [1, 2], "callbacks": {}}


def test_read_task_returns_what_encode_task_was_given() -> None:
    values: dict[str, Any] = {"data.size": 64, "data.buckets": [[1, 2]], "model.text": None, "data.index": "ä"}
    assert read_task({TASK: encode_task(values)}, "there") == values
    assert encode_task(values) == encode_task(dict(reversed(values.items()))), "the order of the keys is no change"


def test_read_task_of_an_older_checkpoint_is_none() -> None:
    assert read_task({"global_step": 3}, "there") is None


def hashed(text: str) -> dict[str, str]:
    return {**encode_task({}), "values": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


DAMAGED: Mapping[str, Any] = {
    "no mapping": [1],
    "no text": {"values": 3, "sha256": "x"},
    "another hash": {**encode_task({"data.size": 64}), "values": '{"data.size": 65}'},
    "no JSON": hashed("{"),
    "a list": hashed("[1]"),
    "too deep": hashed("[" * 100 + "]" * 100),
    "a surrogate": {"values": "\ud800", "sha256": "x"},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_read_task_refuses_a_damaged_record(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"there.*task.*use an older checkpoint"):
        read_task({TASK: DAMAGED[name]}, "there")
