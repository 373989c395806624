"""Several looks on a real engine: the trajectories of `hf:`, of a Qwen2.5-VL that was taught to look, to call wrongly, and to answer."""

from test_several_backends import teach, told, trajectories
from wide_models import save

from visrl.policies.hf.loading import CheckpointArguments, load_checkpoint
from visrl.policies.registry import load_policy


def test_the_same_trajectories(tmp_path, engine, table):
    loaded = teach(
        load_checkpoint(str(save("qwen2_5_vl", tmp_path / "wide")), CheckpointArguments(dtype="float32")),
        rate=1e-3,
        steps=400,
    )
    loaded.model.save_pretrained(tmp_path / "wide")
    here = trajectories(load_policy(f"hf:{tmp_path / 'wide'}", {"dtype": "float32"}))
    there = trajectories(engine(tmp_path / "wide", limit_mm_per_prompt='{"image": 4}'))
    table.append(
        f"several looks: {sum(a == b for a, b in zip(told(there), told(here), strict=True))} of {len(here)} trajectories equal"
    )
    assert [[look.fault for look in e.looks] for e in here] == [["", "not_an_object"]] * 2
    assert told(there) == told(here)
