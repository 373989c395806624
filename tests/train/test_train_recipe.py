"""Recipes: what is refused, with which hint; what is resolved, from where; and every shipped recipe."""

from pathlib import Path

import pytest
import yaml

from visrl.errors import UsageError
from visrl.train.config.recipe import KINDS, load_recipe, resolve

RECIPES = Path(__file__).parents[2] / "recipes"
DPO = "kind: dpo\noutput: out\nmodel: {path: m}\ndata: {path: p.jsonl}\n"


def write(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def test_the_official_values_are_the_defaults(tmp_path):
    recipe = load_recipe(write(tmp_path, DPO)).recipe
    step, trainer = recipe.step, recipe.trainer
    assert (step.beta_box, step.beta_answer, step.lambda_box, step.lambda_answer) == (0.1, 0.1, 0.5, 0.5)
    assert (trainer["learning_rate"], trainer["num_train_epochs"], trainer["lr_scheduler_type"]) == (5e-6, 5, "cosine")
    assert (trainer["warmup_steps"], recipe.seed, step.context) == (0.1, 88, "win_crop")


def test_the_trainer_section_reaches_trl_and_floats_without_a_dot_are_numbers(tmp_path):
    from trl import DPOConfig

    from visrl.train.common.trainer_args import trainer_config

    recipe = load_recipe(
        write(tmp_path, DPO + "trainer: {learning_rate: 5e-7, loss_type: [sigmoid, sft], loss_weights: [1, 0.2]}")
    ).recipe
    assert recipe.trainer["learning_rate"] == 5e-7
    import torch

    args = trainer_config(DPOConfig, recipe.trainer, tmp_path, 3, torch_model())
    assert (args.learning_rate, args.loss_type, args.max_length, args.seed) == (5e-7, ["sigmoid", "sft"], None, 3)
    assert args.bf16 is False or torch.cuda.is_available()


@pytest.mark.parametrize(
    "wrong", [{"lr_scheduler_type": "foo"}, {"optim": "nope"}, {"logging_strategy": "x"}, {"save_strategy": 5}]
)
def test_what_trl_says_of_its_settings_is_an_error_with_a_hint(tmp_path, wrong):
    from trl import DPOConfig

    from visrl.train.common.trainer_args import trainer_config

    with pytest.raises(UsageError, match=r"trainer: .*is not a valid") as caught:
        trainer_config(DPOConfig, wrong, tmp_path, 3, torch_model())
    assert "DPOConfig" in caught.value.hint


def test_a_loss_that_trl_does_not_know_is_refused_before_anything_is_loaded(tmp_path):
    """Names of ours are those that TRL's trainer asks for, and no other."""
    import inspect
    import re

    from trl import GRPOTrainer

    from visrl.train.grpo.recipe import LOSSES

    grpo = "kind: grpo\noutput: out\nmodel: {path: m}\ndata: {path: q.jsonl}\ngrpo: {box: {iou: 1.0}}\n"
    with pytest.raises(UsageError, match="loss_type: unknown 'ppo'; one of dapo, grpo"):
        load_recipe(write(tmp_path, grpo + "trainer: {loss_type: ppo}"))
    source = inspect.getsource(GRPOTrainer._compute_loss)
    asked = re.findall(r"self\.loss_type (?:==|in) (\[[^]]*\]|\"\w+\")", source)
    assert set(re.findall(r"\w+", " ".join(asked))) == set(LOSSES)


def torch_model():
    from tiny_models import build

    return build("llava")[0]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("modle: {path: x}\n", "unknown key 'modle'", "did you mean model"),
        ("step: {beta_bx: 1}\n", "unknown key 'step.beta_bx'", "did you mean beta_box"),
        ("trainer: {learning_rat: 1}\n", "DPOConfig has no 'learning_rat'.*did you mean learning_rate", ""),
        ("trainer: {beta: 1}\n", "beta is set by step.beta_box", ""),
        ("trainer: {max_length: 1024}\n", "max_length is set by max_tokens: nothing is ever cut", ""),
        ("step: {beta_box: -1}\n", "step.beta_box: .*greater than 0", ""),
        ("lora: {rank: 8}\n", "unknown key 'lora.rank'", "known: r, alpha"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest_key(tmp_path, text, message, hint):
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe(write(tmp_path, DPO + text))
    assert hint in caught.value.hint


def test_small_model_is_the_newer_name_of_base(tmp_path):
    """Both words give one recipe; configs of finished phases, which hold the older one, are read by the same function."""
    settings = ["output=o"]
    new = load_recipe(RECIPES / "world-sft.yaml", settings)
    older = write(tmp_path, (RECIPES / "world-sft.yaml").read_text().replace("kind: small_model", "kind: base"))
    assert new.recipe == load_recipe(older, settings).recipe and new.recipe.kind == "small_model"


def test_an_unknown_kind_lists_the_kinds(tmp_path):
    with pytest.raises(UsageError, match="unknown kind 'dop'") as caught:
        load_recipe(write(tmp_path, "kind: dop\n"))
    assert "dpo" in caught.value.hint


def test_settings_override_and_sources_say_so(tmp_path):
    resolved = load_recipe(write(tmp_path, DPO), ["step.stages=[1]", "trainer.learning_rate=1e-4", "seed=7"])
    lines = dict(line.split(" = ", 1) for line in resolved.lines())
    assert resolved.recipe.step.stages == (1,)
    assert lines["trainer.learning_rate"] == "0.0001  (--set)"
    assert lines["model.path"] == "m  (r.yaml)"
    assert lines["step.beta_box"] == "0.1  (default)"
    with pytest.raises(UsageError, match="is not key=value"):
        load_recipe(write(tmp_path, DPO), ["seed"])


def test_no_yaml_tag_runs_code(tmp_path):
    with pytest.raises(UsageError, match=r"r\.yaml"):
        load_recipe(write(tmp_path, "kind: !!python/object/apply:os.system ['true']\n"))


def recipes():
    return sorted(path for path in RECIPES.glob("*.yaml") if yaml.safe_load(path.read_text())["kind"] in ("sft", "dpo"))


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.name)
def test_every_shipped_recipe_is_valid_and_begins_with_its_command_and_its_memory(path):
    assert load_recipe(path).recipe.kind in KINDS
    head = path.read_text().splitlines()
    assert head[0].startswith("# ")
    comment = "\n".join(line for line in head[:12] if line.startswith("#"))
    assert f"visrl-train recipes/{path.name}" in comment
    assert "GB" in comment


def test_the_command_line_checks_without_training(tmp_path, capsys):
    from visrl.cli.train import run

    recipe = str(write(tmp_path, DPO.replace("path: p.jsonl", "format: world_oracle, limit: 4")))
    words = [recipe, "--dry-run", "--set", "step.stages=[1]", "--set"]  # the oracle's pairs have boxes and no answers
    run([*words, "seed=5", "--set", "model.path=sft"])
    assert "seed = 5  (--set)" in capsys.readouterr().err and not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="cannot load m: no such folder"):
        run([*words, "seed=5"])
    with pytest.raises(UsageError, match=r"cannot read p\.jsonl"):
        run([*words, "model.path=sft", "--set", "data={path: p.jsonl}"])
    with pytest.raises(UsageError, match="is a recipe of kind dpo, not sft"):
        run(["sft", str(tmp_path / "r.yaml"), "--dry-run"])


def test_values_of_a_mapping_that_was_set_say_so():
    said = [
        line
        for line in load_recipe(
            RECIPES / "world.yaml", ["pairs.set={data.limit: 96}", "rl.set.seed=1", "sft=3", "sft={model: sft}"]
        ).lines()
        if "set" in line.split(" = ")[0] or line.startswith("sft.model")
    ]
    assert "pairs.set.data.limit = 96  (--set)" in said
    assert "rl.set.seed = 1  (--set)" in said
    assert "sft.model = sft  (--set)" in said


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (("seed=-1", "model.path=m"), "seed"),
        (("model.path=n", "model={path: m, attn: slow}"), "model"),
        (("model.load_in_4bit=true", "model.load_in_8bit=true", "lora.r=4"), "model.load_in_4bit, model.load_in_8bit"),
        (("lora={r: 0}", "step.beta_box=0.2", "lora.alpha=3"), "lora"),
        (("model.colour=red", "output=x"), "model.colour"),
    ],
)
def test_an_error_names_the_settings_it_comes_of_and_no_others(tmp_path, settings, named):
    with pytest.raises(UsageError) as caught:
        load_recipe(write(tmp_path, DPO), settings)
    assert caught.value.hint.endswith(f" (read with --set {named})")


def test_an_error_of_the_file_names_no_setting(tmp_path):
    with pytest.raises(UsageError, match=r"r\.yaml: seed: ") as caught:
        load_recipe(write(tmp_path, DPO + "seed: -1\n"), ("model.path=m",))
    assert "--set" not in caught.value.hint


def test_what_a_loop_sets_itself_is_not_said_to_be_a_setting_of_the_user(tmp_path):
    with pytest.raises(UsageError, match=r"r\.yaml: seed: ") as caught:
        resolve(write(tmp_path, DPO), {"seed": -1, "output": "x"})
    assert "--set" not in caught.value.hint
