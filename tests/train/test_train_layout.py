"""Where tokens stand in a batch of pairs, and what may look at what, written out for P = 3, C = 3, two branches."""

import torch

from visrl.train.common.prefix_sharing import Layout, block_mask, branch_positions, join

SHARED = Layout(prompt=3, width=3, branches=2)  # [p p p | w w | l l]: 3 + 2 (3 - 1) = 7 columns


def test_the_last_prompt_token_predicts_the_first_token_of_every_branch():
    # kept columns are 2 (last prompt), 3, 4 (win), 5, 6 (lose), numbered 0..4: win is predicted at 0, 1, 2, lose at 0, 3, 4
    assert SHARED.kept == 5
    assert SHARED.columns().tolist() == [[0, 1, 2], [0, 3, 4]]


def test_completions_of_one_token_need_no_branch_at_all():
    layout = Layout(prompt=4, width=1, branches=2)
    assert (layout.length, layout.kept) == (4, 1)
    assert layout.columns().tolist() == [[0], [0]]


def test_join_drops_the_last_token_of_each_completion():
    prompt = torch.tensor([[1, 2, 3]])
    completions = torch.tensor([[[4, 5, 6], [7, 8, 9]]])
    assert join(prompt, completions).tolist() == [[1, 2, 3, 4, 5, 7, 8]]


def test_both_branches_go_on_from_the_last_prompt_position():
    assert branch_positions(torch.tensor([[0, 0, 1]]), SHARED).tolist() == [[0, 0, 1, 2, 3, 2, 3]]
    three_axes = torch.tensor([[[0, 1, 5]], [[0, 2, 5]], [[0, 3, 5]]])  # [3, B, P]
    assert branch_positions(three_axes, SHARED)[:, 0, 3:].tolist() == [[6, 7, 6, 7]] * 3


def test_block_mask_row_by_row():
    mask = block_mask(torch.tensor([[0, 1, 1]]), SHARED)  # the first prompt column is padding
    expected = [".......", ".x.....", ".xx....", ".xxx...", ".xxxx..", ".xx..x.", ".xx..xx"]
    assert ["".join("x" if cell else "." for cell in row) for row in mask[0, 0]] == expected


def test_a_prefix_that_looks_both_ways_still_cannot_see_the_branches():
    mask = block_mask(torch.tensor([[1, 1, 1]]), SHARED, both_ways=torch.tensor([[True, True, True]]))
    expected = ["xxx....", "xxx....", "xxx....", "xxxx...", "xxxxx..", "xxx..x.", "xxx..xx"]
    assert ["".join("x" if cell else "." for cell in row) for row in mask[0, 0]] == expected
