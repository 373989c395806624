"""MiniCPM-o's way of being spoken to, on a stand-in repository: its own model code, ``chat(msgs=…, tokenizer=…)``."""

import json

import pytest
import tiny_models as tiny
import torch
from safetensors.torch import save_file
from tinies import picture

from visrl.core.boxes import Box
from visrl.core.prompts import PROTOCOLS
from visrl.core.types import CoTSample, Turn
from visrl.errors import UsageError
from visrl.policies.hf.policy import HFPolicy
from visrl.policies.protocol import Request, Sampling
from visrl.rollout.config import RolloutConfig
from visrl.rollout.rollout import look_then_answer

CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel

class StandInConfig(PretrainedConfig):
    model_type = "minicpmo"

class StandIn(PreTrainedModel):
    config_class = StandInConfig

    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.post_init()

    def chat(self, msgs=None, tokenizer=None, max_new_tokens=2048, sampling=True, num_beams=3, **kwargs):
        assert tokenizer is not None and kwargs["repetition_penalty"] == 1.0
        if sampling:
            return f"{torch.rand(()).item():.6f}"
        assert num_beams == 1
        seen = [part.size for m in msgs for part in m["content"] if not isinstance(part, str)]
        if "bounding box" in str(msgs[-1]["content"][-1]):
            return "<box>250 250 750 500</box> is where it is"
        return f"{[m['role'] for m in msgs]} {seen}"
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "stand_in"
    folder.mkdir()
    auto = {"AutoConfig": "modeling_stand_in.StandInConfig", "AutoModel": "modeling_stand_in.StandIn"}
    (folder / "config.json").write_text(json.dumps({"model_type": "minicpmo", "auto_map": auto, "dtype": "float32"}))
    (folder / "modeling_stand_in.py").write_text(CODE)
    save_file({"weight": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    tiny.tokenizer([], "<pad>", "<s>", "</s>").save_pretrained(folder)
    return str(folder)


def test_code_of_a_repository_runs_only_when_trusted(repository):
    with pytest.raises(UsageError, match="needs Python code from its own repository") as caught:
        HFPolicy.load(repository)
    assert "trust_remote_code=true" in caught.value.hint and "endpoint:" in caught.value.hint


def test_both_turns(repository):
    policy = HFPolicy.load(repository, trust_remote_code="true")
    sample = CoTSample("a", "t", "qa", "what is it?", picture(200, 100), (200, 100))
    (episode,) = look_then_answer(policy, [sample], RolloutConfig(PROTOCOLS["viscot_train"], crop="tight"))
    # 0..1000 over 200x100: x 250 -> 50, 750 -> 150; y 250 -> 25, 500 -> 50
    assert episode.box == Box(50, 25, 150, 50)
    assert episode.box_step.output == "<box>250 250 750 500</box>"  # cut behind the box
    assert episode.answer == "['user', 'assistant', 'user'] [(200, 100), (100, 25)]"
    about = policy.describe()
    assert (
        about["trust_remote_code"] is True
        and len(about["weights_sha256"]) == 64
        and about["box_format"] == "box_tag_1000"
    )


def test_samples_have_seeds_of_their_own(repository):
    policy = HFPolicy.load(repository, trust_remote_code="true")
    requests = [Request(k, "box", (Turn("user", ("where",)),)) for k in "ab"]
    hot = Sampling(n=2, temperature=2.0)
    texts = [o.texts for o in policy.generate(requests, hot)]
    assert len({t for row in texts for t in row}) == 4
    assert [o.texts for o in policy.generate(requests[::-1], hot)] == texts[::-1]


def test_code_that_does_not_run_here_says_so(repository):
    from pathlib import Path

    Path(repository, "modeling_stand_in.py").write_text("from transformers import NoSuchThing\n")
    with pytest.raises(UsageError, match="does not run here") as caught:
        HFPolicy.load(repository, trust_remote_code="true")
    assert "endpoint:" in caught.value.hint
