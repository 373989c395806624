"""The parts of the decode loop that need no model."""

import random
from collections import Counter

import torch

from visrl.policies.families.base import Chat, EncodedImage
from visrl.policies.hf.decoding import Branch, _branch_mask, sample_next_token, shared_length
from visrl.policies.protocol import Sampling


def drawn(logits, sampling, n=4000):
    rows = [[Branch(random.Random(str(i))) for i in range(n)]]
    tokens = sample_next_token(torch.tensor(logits).expand(1, n, -1), sampling, rows)[0]
    return {token: count / n for token, count in Counter(tokens).items()}


def test_zero_temperature_takes_the_best():
    assert drawn([0.1, 2.0, 1.9], Sampling()) == {1: 1.0}


def test_frequencies_are_the_softmax():
    # p = .5, .3, .2; standard error of 4,000 draws: sqrt(.25/4000) = .008, so four of them are .032
    got = drawn(torch.tensor([0.5, 0.3, 0.2]).log().tolist(), Sampling(temperature=1.0))
    assert all(abs(got[i] - p) < 0.032 for i, p in enumerate((0.5, 0.3, 0.2)))


def test_temperature_comes_before_top_p():
    # log p = .5, .3, .2 at T = 2: sqrt -> .707, .548, .447 -> .415, .322, .263. top_p .7: .415 + .322 = .737 passes it, so two stay
    got = drawn(torch.tensor([0.5, 0.3, 0.2]).log().tolist(), Sampling(temperature=2.0, top_p=0.7))
    assert set(got) == {0, 1}
    assert abs(got[0] - 0.415 / 0.737) < 0.032


def test_top_k_keeps_k():
    assert set(drawn([3.0, 2.9, 2.8, 2.7], Sampling(temperature=1.0, top_k=2))) == {0, 1}


def test_branches_see_their_row_and_themselves():
    visible = torch.tensor([[False, True], [True, True]])
    seen = _branch_mask(visible, 2, 2, torch.float32) == 0
    # slots: two of the prompt, then (branch 0, branch 1) of step 1, then of step 2
    assert seen[0, 0].tolist() == [[False, True, True, False, True, False], [False, True, False, True, False, True]]
    assert seen[1, 0].tolist() == [[True, True, True, False, True, False], [True, True, False, True, False, True]]


def chat(ids, digest="d", start=1):
    return Chat(tuple(ids), (False,) * len(ids), (EncodedImage(digest, (9, 9, 9), {}),), (start,))


def test_shared_length_stops_at_the_first_difference_and_before_the_last_token():
    known = chat([1, 9, 9, 9, 2, 3, 4]).signature
    assert shared_length(chat([1, 9, 9, 9, 2, 3, 5, 6]), known) == 6
    assert shared_length(chat([1, 9, 9, 9, 2, 3, 4]), known) == 6  # something must be read to get logits


def test_shared_length_never_ends_inside_a_picture():
    known = chat([1, 9, 9, 9, 2]).signature
    assert shared_length(chat([1, 9, 9, 9, 2], digest="other"), known) == 1
    assert shared_length(chat([1, 9, 9, 9]), known) == 1  # all but the last token would cut the picture
