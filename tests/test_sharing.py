"""What is shared: a model card's evaluation section, merged weights, and both on the hub, which stands on loopback here."""

import json
import os
import subprocess
import sys

import pytest
import tiny_models as tiny
import yaml
from hub_stand_in import TOKEN, hub

from visrl.cli.evaluate import main
from visrl.core.records import TaskResult, write_results
from visrl.tables.model_index import BEGIN, chosen


def record(task="refcoco_val", metric="acc@0.5", value=62.5, **more):
    facts = {
        "task_version": "1", "se": 1.25, "ci": (60.05, 64.95), "unit": "percent", "n": 8, "n_expected": 10834, "n_clusters": 8,
        "protocol": "visrl_train/v1", "focus": "predicted", "crop": "tight", "model": "hf:org/my-model", "limit": 8,
        "model_info": {"weights_sha256": "aa"},
    }  # fmt: skip
    return TaskResult(task=task, metric=metric, value=value, **{**facts, **more})


def run_of(folder, *records):
    write_results(folder / "records" / "all.json", records)
    (folder / "run.json").write_text("{}")
    return folder


@pytest.fixture
def run(tmp_path):
    pope = record("pope_coco_random", "f1", 80.0, unit="percent", limit=None, n=3000, n_expected=3000)
    lost = record("mme", "perception", None, unit="points", se=None, ci=None, n=0)
    return run_of(tmp_path / "run", record(), record(metric="miou", value=50.0), pope, lost)


def test_the_yaml_is_what_the_hub_reads_with_what_made_each_number(run, capsys):
    from huggingface_hub import ModelCard

    assert main(["card", str(run)]) == 0
    text = capsys.readouterr().out
    (index,) = yaml.safe_load(text.strip("-\n"))["model-index"]
    assert index["name"] == "my-model"
    first = next(r for r in index["results"] if r["dataset"]["type"] == "refcoco_val")
    assert first["dataset"]["name"] == "refcoco_val (first 8)" and first["dataset"]["args"]["n_expected"] == 10834
    (metric,) = first["metrics"]  # the main one
    assert (metric["type"], metric["value"], metric["name"]) == ("acc@0.5", 62.5, "acc@0.5 (percent)")
    assert metric["args"].pop("scored_by").startswith("visrl ")
    assert metric["args"] == {"protocol": "visrl_train/v1", "focus": "predicted", "crop": "tight", "se": 1.25}
    read = ModelCard(text).data.eval_results
    assert {(r.dataset_type, r.metric_value) for r in read} == {("refcoco_val", 62.5), ("pope_coco_random", 80.0)}
    assert "mme" not in text  # it has no value
    assert main(["card", str(run), "--all"]) == 0
    assert "miou" in capsys.readouterr().out


CARD = """---
license: mit
model-index:
- name: theirs
  results:
  - task:
      type: text-generation
    dataset:
      type: other/set
      name: other
    metrics:
    - type: accuracy
      value: 0.5
---

# Theirs

Words.
"""


def test_a_card_keeps_what_others_wrote_and_ours_is_replaced(run, tmp_path):
    from huggingface_hub import ModelCard

    file = tmp_path / "README.md"
    file.write_text(CARD)
    for _ in range(2):
        assert main(["card", str(run), "-o", str(file)]) == 0
    text = file.read_text()
    assert text.count(BEGIN) == 1 and "Words." in text and text.count("acc@0.5 |") == 1
    data = ModelCard(text).data
    assert (data.license, data.model_name) == ("mit", "theirs")
    assert [r.dataset_type for r in data.eval_results].count("refcoco_val") == 1
    assert "other/set" in [r.dataset_type for r in data.eval_results]


def test_runs_of_two_models_and_a_number_twice_are_refused(tmp_path, capsys):
    first, other = run_of(tmp_path / "a", record()), record(model_info={"weights_sha256": "bb"})
    second = run_of(tmp_path / "b", other)
    assert main(["card", str(first), str(second)]) == 2
    assert "are runs of different models" in capsys.readouterr().err
    third = run_of(tmp_path / "c", record(value=1.0))
    assert main(["card", str(first), str(third)]) == 2
    assert "both have refcoco_val acc@0.5 visrl_train/v1" in capsys.readouterr().err
    looked = {tmp_path / "a": [record()], tmp_path / "c": [record(protocol="direct/v1")]}
    assert [r.protocol for r in chosen(looked, every=False)] == ["visrl_train/v1", "direct/v1"]


def shared(server, arguments, program="visrl.cli.evaluate", token=TOKEN, **more):
    """A command of its own: huggingface_hub reads its endpoint when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": token, **more}
    environment = {k: v for k, v in environment.items() if k != "HF_HUB_OFFLINE" and v}
    code = f"import sys; from {program} import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_card_is_pushed_into_the_repository_s_own(run, tmp_path):
    with hub(**{"README.md": CARD}) as server:
        done = shared(server, ["card", run, "--push", "org/model"], HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/commit/" + "b" * 40)
    text = server.files["README.md"].decode()
    assert "Words." in text and "refcoco_val" in text and "other/set" in text
    assert all(with_token for method, _, with_token in server.seen if method == "POST")
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("status", "token", "said"),
    [(401, TOKEN, "the token is not valid"), (403, TOKEN, "may not write"), (0, "", "needs a token")],
)
def test_what_the_hub_refuses_is_said_without_the_token(status, token, said, run, tmp_path):
    with hub(refuse=status) as server:
        done = shared(server, ["card", run, "--push", "org/model"], token=token, HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert TOKEN not in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A tiny LLaVA and a LoRA whose product is not zero."""
    import torch
    from transformers import AutoModelForImageTextToText

    from visrl.train.common.models import add_lora
    from visrl.train.config.recipe import LoraSection

    root = tmp_path_factory.mktemp("merge")
    base = tiny.save("llava", root / "base")
    wrapped = add_lora(AutoModelForImageTextToText.from_pretrained(base), LoraSection(r=2, alpha=4), 0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=generator)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(root / "lora")
    return root


def test_merged_weights_score_as_the_adapter_does(adapter, tmp_path, capsys):
    """The same weights bit by bit: the base's plus alpha/r B A, rounded once in the base's dtype."""
    from visrl.cli.train import run as train
    from visrl.policies.hf.hashes import weights_hash
    from visrl.policies.registry import load_policy

    out = tmp_path / "whole"
    assert train(["merge", str(adapter / "lora"), "--output", str(out)]) == 0
    facts = json.loads((out / "merged.json").read_text())
    assert facts["weights_sha256"] == weights_hash(out) and facts["weights_sha256"] in capsys.readouterr().err
    assert facts["adapter"]["weights_sha256"] == weights_hash(adapter / "lora")
    merged, with_adapter = load_policy(f"hf:{out}"), load_policy(f"hf:{adapter / 'lora'}")
    one, other, base = (p.model.state_dict() for p in (merged, with_adapter, load_policy(f"hf:{adapter / 'base'}")))
    assert all((one[name] == other[name]).all() for name in other)
    assert any((one[name] != base[name]).any() for name in base)


def test_a_merge_without_an_adapter_or_into_a_folder_that_exists_is_refused(adapter, tmp_path):
    from visrl.cli.train import run as train
    from visrl.errors import UsageError

    with pytest.raises(UsageError, match="is not an adapter"):
        train(["merge", str(adapter / "base"), "--output", str(tmp_path / "x")])
    with pytest.raises(UsageError, match="exists"):
        train(["merge", str(adapter / "lora"), "--output", str(tmp_path)])


def test_merged_weights_are_pushed(adapter, tmp_path):
    with hub() as server:
        asked = ["merge", adapter / "lora", "--output", tmp_path / "whole", "--push", "org/model"]
        done = shared(server, asked, "visrl.cli.train", HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert server.files["model.safetensors"] == (tmp_path / "whole/model.safetensors").read_bytes()
    assert "merged.json" in server.files and TOKEN not in done.stdout + done.stderr
