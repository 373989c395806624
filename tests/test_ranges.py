"""Every number that a user may give has a range: all declared options, arguments and keys are walked over, so that a new one that
takes nonsense fails here.
"""

import importlib
import math
import types
import typing
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from typer.main import get_command

from visrl.cli import evaluate, train
from visrl.core.arguments import LARGEST, check_magnitude
from visrl.errors import UsageError
from visrl.evals.suite import Cell, Paired, load_suite
from visrl.policies.arguments import ModelArguments
from visrl.train.config.recipe import KINDS, kind_of, load_recipe
from visrl.train.config.trainer_ranges import numeric

BAD = ("-1", "-3", "nan", "inf", "-inf", "1" + "0" * 30, "1e30", "x")


# --- command lines
ZERO_OPTIONS = {"seed", "skip", "port", "fail_on_error"}


def options():
    """(command, option) of every number of visrl-eval."""
    for name, command in get_command(evaluate.app).commands.items():
        for option in command.params:
            kinds = set(typing.get_args(option.type_descriptor.annotation)) or {option.type_descriptor.annotation}
            if kinds & {int, float}:
                yield name, option


def words_of(name, option, value):
    """A command line with all that is required, and the option."""
    command = get_command(evaluate.app).commands[name]
    needed = [param for param in command.params if param.required and param is not option]
    words = [word for param in needed for word in ([param.opts[0], "x"] if param.opts[0].startswith("-") else ["x"])]
    return [name, *words, f"{option.opts[0]}={value}"]


def ids(pair):
    return f"{pair[0]}-{pair[1].name}"


@pytest.mark.parametrize("pair", list(options()), ids=ids)
def test_an_option_refuses_what_is_out_of_its_range(pair, capsys):
    name, option = pair
    for value in (*BAD, *(() if option.name in ZERO_OPTIONS else ("0",))):
        assert evaluate.main(words_of(name, option, value)) == 2, value
        said = capsys.readouterr().err
        assert option.opts[0] in said and "hint: " in said and "Traceback" not in said, (value, said)


def test_every_option_that_is_a_number_is_walked_over():
    found = {option.name for _, option in options()}
    assert {
        "limit",
        "seed",
        "max_tokens",
        "ray",
        "fail_on_error",
        "port",
        "tflops",
        "bandwidth",
        "gpus",
        "columns",
    } <= found


@pytest.mark.parametrize("value", [*BAD, "0", "9" * 5000, "²"])
def test_a_batch_size_is_a_number_of_at_least_one_or_auto(value, tmp_path, capsys):
    words = [
        "run",
        "--model",
        "constant:[0, 0, 1, 1]",
        "--tasks",
        "world_viscot_doc",
        "--limit",
        "2",
        "-o",
        str(tmp_path / "run"),
    ]
    assert evaluate.main([*words, f"--batch-size={value}"]) == 2
    assert "neither a number nor auto" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--gpus", "--tflops", "--bandwidth", "--samples", "--answer"])
@pytest.mark.parametrize("value", [*BAD, "0", "9" * 5000])
def test_an_estimate_of_a_recipe_refuses_it_too(option, value, capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["estimate", "world-grpo", f"{option}={value}"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert option in said and said.startswith("error: ") and "hint: " in said


# --- --model-args
ZERO_ARGUMENTS = {
    ("hf", "rows"),
    ("endpoint", "patience"),
    ("vllm", "max_lora_rank"),
}  # 0: 32 on a GPU, 8 elsewhere; a server that is down is not waited for; no adapter is to come


def kinds_of_models():
    for module in ("hf.policy", "servers.endpoint", "servers.vllm", "recorded.replay", "registry"):
        importlib.import_module(f"visrl.policies.{module}")
    found, todo = [], [ModelArguments]
    while todo:
        todo += (more := todo.pop().__subclasses__())
        found += [kind for kind in more if hasattr(kind, "kind")]
    return found


def is_number(annotation):
    kinds = set(typing.get_args(annotation)) or {annotation}
    return bool(kinds & {int, float}) and bool not in kinds


ARGUMENTS = [
    (kind, name)
    for kind in kinds_of_models()
    for name, field in kind.model_fields.items()
    if is_number(field.annotation)
]


@pytest.mark.parametrize(("kind", "name"), ARGUMENTS, ids=[f"{kind.__name__}-{name}" for kind, name in ARGUMENTS])
def test_an_argument_of_a_model_refuses_what_is_out_of_its_range(kind, name):
    for value in (*BAD, *(() if (kind.kind, name) in ZERO_ARGUMENTS else ("0",))):
        with pytest.raises(UsageError, match=name):
            kind.read({name: value})


def test_every_argument_that_is_a_number_is_walked_over():
    """Of vLLM's engine visrl declares none: what is passed on to it, its own parser reads."""
    found = {f"{kind.kind}:{name}" for kind, name in ARGUMENTS}
    wanted = {
        "endpoint:in_flight",
        "endpoint:timeout",
        "endpoint:tries",
        "hf:rows",
        "hf:max_pixels",
        "vllm:max_lora_rank",
    }
    assert {*wanted, "a shipped model:rows"} <= found


def test_the_least_is_not_more_than_the_most():
    from visrl.core.box_formats import format_named
    from visrl.policies.hf.policy import HFArguments

    for least, most in (("min_pixels", "max_pixels"), ("min_tiles", "max_tiles")):
        with pytest.raises(UsageError, match=f"{least}=9 is more than {most}=8"):
            HFArguments.read({least: "9", most: "8"})
        assert HFArguments.read({least: "8", most: "8"}).pixel_limits == {least: 8, most: 8}
    with pytest.raises(UsageError, match="min_pixels=9 is more than max_pixels=8"):
        format_named("json_resized", min_pixels="9", max_pixels="8")


# --- recipes
ZERO_KEYS = {
    "seed", "data.skip", "lora.dropout", "step.lambda_box", "step.lambda_answer", "step.vision_cache_gb", "chain.vision_cache_gb",
    "grpo.vision_cache_gb", "grpo.keep", "decay", "hold", "watch_every", "workers", "sampling.temperature", "sampling.top_k",
    "sampling.extra_samples", "select.win_box", "select.win_answer", "select.lose_box", "select.lose_answer", "iterations", "max_failed",
}  # fmt: skip
RECIPES = {
    "sft": {"model": {"path": "m"}, "data": {"path": "d"}, "lora": {}},
    "dpo": {"model": {"path": "m"}, "data": {"path": "d"}, "lora": {}},
    "grpo": {"model": {"path": "m"}, "data": {}, "lora": {}, "grpo": {"box": {"iou": 1.0}}},
    "small_model": {"split": "train", "steps": 1, "lessons": {"look": [1, 1]}},
    "pairs": {"policy": {"model": "tiny"}, "critic": {"kind": "oracle"}, "data": {}},
    "loop": {"base": "tiny", "iterations": 0},
    "ablations": {"recipe": "r.yaml", "variants": {"full": {}}},
}


def sections(annotation):
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]


def keys(model, prefix=""):
    """Dotted keys of every number of a recipe."""
    for name, field in model.model_fields.items():
        for inner in sections(field.annotation):
            yield from keys(inner, f"{prefix}{name}.")
        if is_number(field.annotation):
            yield f"{prefix}{name}"


KEYS = [(kind, key) for kind in KINDS for key in keys(kind_of(kind).recipe)]


def recipe(folder, kind):
    path = Path(folder) / f"{kind}.yaml"
    path.write_text(yaml.safe_dump({"kind": kind, "output": "out", **RECIPES[kind]}))
    return path


@pytest.mark.parametrize(("kind", "key"), KEYS, ids=[f"{kind}-{key}" for kind, key in KEYS])
def test_a_key_of_a_recipe_refuses_what_is_out_of_its_range(kind, key, tmp_path):
    path = recipe(tmp_path, kind)
    load_recipe(path)  # valid without it
    for value in (*BAD, ".nan", ".inf", *(() if key in ZERO_KEYS else ("0",))):
        with pytest.raises(UsageError, match=key.rpartition(".")[2]):
            load_recipe(path, [f"{key}={value}"])


def test_every_key_that_is_a_number_is_walked_over():
    assert {"sft:lora.r", "dpo:step.beta_box", "grpo:grpo.keep", "pairs:sampling.top_p", "pairs:ray", "loop:score.limit",
            "ablations:seeds", "small_model:lr", "pairs:seed", "sft:chain.held_out"} <= {f"{kind}:{key}" for kind, key in KEYS}  # fmt: skip


SUITE = {"baseline": "b", "model": "tiny", "tasks": "refcoco_val"}
ZERO_SUITE = {"paired.seed", "paired.max_unscored", "paired.max_unparsed"}


def suite_keys():
    for section, model in (("paired", Paired), ("cell", Cell)):
        for name, field in model.model_fields.items():
            if is_number(field.annotation):
                yield f"{section}.{name}"


@pytest.mark.parametrize("key", list(suite_keys()))
def test_a_key_of_a_suite_refuses_it_too(key, tmp_path):
    section, _, name = key.partition(".")
    path = tmp_path / "suite.yaml"
    for value in (-1, -3, math.nan, math.inf, 1e30, 10**30, "x", *(() if key in ZERO_SUITE else (0,))):
        cell = {"task": "refcoco_val", "floor": 1.0, **({name: value} if section == "cell" else {})}
        path.write_text(
            yaml.safe_dump({"paired": [{**SUITE, "cells": [cell], **({name: value} if section == "paired" else {})}]})
        )
        with pytest.raises(UsageError, match="not a suite"):
            load_suite(str(path))


def test_every_key_of_a_suite_that_is_a_number_is_walked_over():
    assert set(suite_keys()) == {
        "paired.limit",
        "paired.seed",
        "paired.batch_size",
        "paired.max_unscored",
        "paired.max_unparsed",
        "cell.floor",
    }


def trainer_keys():
    from trl import DPOConfig, GRPOConfig, SFTConfig

    for kind, config in (("sft", SFTConfig), ("dpo", DPOConfig), ("grpo", GRPOConfig)):
        for key, kinds in numeric(config).items():
            yield (
                kind,
                key,
                [value for value in (-3, 1e30, 10**30, True, "x") if type(value) is not str or str not in kinds],
            )


@pytest.mark.parametrize(("kind", "key", "bad"), list(trainer_keys()))
def test_a_key_that_goes_to_trl_refuses_it_too(kind, key, bad, tmp_path):
    for value in bad:
        path = recipe(tmp_path, kind)
        tree = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**tree, "trainer": {key: value}}))
        with pytest.raises(UsageError, match=key):
            load_recipe(path)


@pytest.mark.parametrize(
    ("kind", "key", "good", "bad"),
    [
        ("sft", "max_steps", -1, 0),
        ("sft", "learning_rate", 1e-30, 0),
        ("dpo", "label_smoothing", 1, 1.5),
        ("sft", "warmup_steps", 0, -1),
        ("sft", "per_device_train_batch_size", 1, 0),
        ("sft", "per_device_train_batch_size", 1, 1.5),
        ("grpo", "num_generations", 2, 1),
        ("grpo", "temperature", 0.1, 0),
        ("grpo", "top_p", 1.0, 1.01),
        ("grpo", "top_k", 0, -1),
        ("grpo", "beta", 0.0, -0.1),
        ("sft", "dataloader_num_workers", 1024, 1025),
        ("sft", "save_total_limit", None, 0),
    ],
)
def test_where_a_range_of_trl_ends(kind, key, good, bad, tmp_path):
    path = recipe(tmp_path, kind)
    tree = yaml.safe_load(path.read_text())
    for value, fits in ((good, True), (bad, False)):
        path.write_text(yaml.safe_dump({**tree, "trainer": {key: value}}))
        if fits:
            assert load_recipe(path).recipe.trainer[key] == value
        else:
            with pytest.raises(UsageError, match=key):
                load_recipe(path)


@pytest.mark.parametrize("value", [{"a": [1, 10**13]}, -(10**13), float("nan"), [float("inf")], 1.1e12])
def test_numbers_nobody_means(value):
    with pytest.raises(ValueError, match="not a finite number of at most 1e"):
        check_magnitude(value)
    check_magnitude({"a": [LARGEST, -LARGEST, 0.5, "x", None, True]})


def test_pydantic_says_which_key(tmp_path):
    with pytest.raises(ValidationError, match="iou: not a finite number"):
        kind_of("grpo").recipe.model_validate(
            {"kind": "grpo", "output": "o", **RECIPES["grpo"], "grpo": {"box": {"iou": 1e13}}}
        )
