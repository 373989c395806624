"""SFT: labels are box and answer and nothing else, for every family; and no reply is trained on what it could not see."""

import dataclasses

import pytest
import torch
from train_made import FAMILIES, demonstration, sample, tiny
from trl import SFTConfig

from visrl.core.boxes import Box
from visrl.errors import UsageError
from visrl.train.common.conversations import count
from visrl.train.common.encoding import ChainCollator
from visrl.train.data.rows import Chain, Demonstration
from visrl.train.sft.sft import ChainTrainer


def collated(trainee, demonstrations, **more):
    joined = trainee.family.keeps_prefix
    rows = [(d, part) for d in demonstrations for part in range(count(d.sample, d.protocol, joined=joined))]
    collator = ChainCollator(rows, trainee.speaker, **more)
    return collator([{"row": i} for i in range(len(rows))])


def said(trainee, labels):
    """The trained texts of a row: runs of labels, decoded, without what ends a turn."""
    tokenizer, runs = trainee.family.tokenizer, [[]]
    for label in labels.tolist():
        if label == -100:
            runs.append([])
        else:
            runs[-1].append(label)
    texts = [tokenizer.decode(run) for run in runs if run]
    return [text.removesuffix(trainee.family.layout.assistant_end).strip() for text in texts]


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_decode_to_exactly_box_and_answer(name):
    trainee = tiny(name)
    example = demonstration(0)
    box = trainee.speaker.box_format.write(Box(2, 3, 20, 25), (40, 30))
    for protocol in ("visrl_train", "viscot_train", "viscot_eval"):
        batch = collated(trainee, [Demonstration(example.sample, protocol, example.chain)])
        rows = [said(trainee, labels) for labels in batch["labels"]]
        one = protocol == "viscot_train" and trainee.family.keeps_prefix
        assert rows == ([[box, "yes"]] if one else [[box], ["yes"]]), protocol


def test_referring_expressions_train_the_box_alone_and_direct_the_answer_alone():
    trainee, asked = tiny("llava"), sample(0)
    expression = Demonstration(dataclasses.replace(asked, kind="rec"), "visrl_train", Chain(box=(2, 3, 20, 25)))
    direct = Demonstration(asked, "direct", Chain(answer="blue"))
    rows = [said(trainee, labels) for labels in collated(trainee, [expression, direct])["labels"]]
    # 40 x 30 on a square of 40: pad 5 above, so y 3 -> 8/40, 25 -> 30/40; x 2 -> 2/40, 20 -> 20/40
    assert rows == [["[0.050, 0.200, 0.500, 0.750]"], ["blue"]]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trained_token_never_sees_what_comes_after_it(name):
    """Change the last trained token of a row: no earlier trained token's prediction moves (TRL's collator shifts PaliGemma's mask)."""
    trainee = tiny(name)
    chats = collated(trainee, [demonstration(0), demonstration(1)])["chats"]
    for chat in chats:
        last = max(i for i, trained in enumerate(chat.trained) if trained)
        other = (*chat.ids[:last], chat.ids[last] - 1, *chat.ids[last + 1 :])
        changed = type(chat)(other, chat.trained, chat.pictures, chat.starts)
        first = chat.trained.index(True)
        logits = [_logits(trainee, c) for c in (chat, changed)]
        assert torch.allclose(logits[0][first - 1 : last], logits[1][first - 1 : last], atol=1e-5)


def _logits(trainee, chat):
    batch = trainee.family.collate([chat])
    batch.pop("labels")
    with torch.no_grad():
        return trainee.base(**batch).logits[0]


@pytest.mark.parametrize("name", ["llava", "paligemma2", "mllama", "qwen3_vl"])
def test_the_loss_is_the_mean_over_box_and_answer_tokens_of_all_rows(name, tmp_path):
    trainee = tiny(name)
    rows = [(demonstration(i), part) for i in range(2) for part in range(2)]
    collator = ChainCollator(rows, trainee.speaker, store=trainee.feature_store(1.0))
    args = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", max_length=None,
        save_strategy="no", dataloader_pin_memory=False, remove_unused_columns=False,
    )  # fmt: skip
    trainer = ChainTrainer(trainee, collator, args, title="test")
    total, tokens = 0.0, 0
    for i in range(4):
        chat = collator.chat(i)
        logp = _logits(trainee, chat).log_softmax(-1)
        for t, trained in enumerate(chat.trained):
            if trained:
                total, tokens = total - logp[t - 1, chat.ids[t]].item(), tokens + 1
    batch = collator([{"row": i} for i in range(4)])
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(total / tokens, rel=1e-5)


def test_too_long_a_sequence_stops_with_the_sample_named():
    with pytest.raises(UsageError, match=r"sample s0 needs .* tokens, max_tokens is 30"):
        collated(tiny("llava"), [demonstration(0)], max_tokens=30)
