"""Pairs over several looks: what is drawn, scored and preferred at each look, and that nothing hangs on batches or the disk."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from several_made import DeepCritic, DeepPolicy, crops, questions
from test_pairs import recipe

from visrl.core.boxes import Box, iou
from visrl.core.types import Score
from visrl.errors import UsageError
from visrl.policies.protocol import LogLikelihood
from visrl.train.config.recipe import DataSection
from visrl.train.critics.critics import ScoreCritic, make_critic
from visrl.train.critics.margin_critic import MarginCritic
from visrl.train.data.candidates import Candidate, CandidateLook
from visrl.train.data.load import load_preferences
from visrl.train.data.rows import PairRow, read_rows
from visrl.train.pairs.diversity import BoxProposal, control_again
from visrl.train.pairs.run import make_pairs, plan_of
from visrl.train.pairs.sampling import PairSampler, from_json, to_json
from visrl.train.pairs.selection import Rule, decide
from visrl.train.pairs.statistics import pairs_of

N = 60
CODE = Rule()


def make(output, n=N, faults=0.0, policy=DeepPolicy, critic=None, **more):
    asked, samples = recipe(output, **more), questions(n)
    policy = policy("sft", samples, faults)
    critic = critic or ScoreCritic(DeepCritic("org", samples, faults))
    return make_pairs(PairSampler(policy, critic, plan_of(asked, policy)), samples, asked)


# --- which looks are preferred


def tree(*leaves):
    """Leaves as (path, answer, box score): ``"a/x"`` is look x after look a. Equal beginnings are one look."""
    known, chains = {}, []
    for path, answer, *scores in leaves:
        looks = []
        parts = path.split("/")
        for k in range(len(parts)):
            key = tuple(parts[: k + 1])
            place = (ord(parts[k][0]), 0)
            look = known.setdefault(key, CandidateLook(Box(k, k, k + 9.0, k + 9.0), place=place))
            value = scores[k] if k < len(scores) else "?"
            if value != "?":
                look.score = Score(value)
            looks.append(look)
        chains.append(Candidate(answer_score=Score(answer), looks=tuple(looks), answer_text=path))
    return chains


def chosen_and_looks(chains, rule=CODE):
    decision = decide(chains, rule)
    return [(a, looks) for (a, _), looks in zip(decision.pairs, decision.looks, strict=True)]


def test_the_rejected_look_is_drawn_at_the_place_of_the_chosen_one():
    chains = tree(
        ("a/x", 1.0, 0.1, 0.9),  # right: the first crop is too large to read, the second is read
        ("a/y", 0.0, 0.1, 0.1),
        ("b/z", 0.0, 0.1, 0.1),
    )
    # look 1: b, whose chains all answer wrong, and in which nothing can be read; look 2: y, not z, which was drawn after b
    assert chosen_and_looks(chains) == [(0, (2, 1))]
    assert decide(chains, CODE).pairs == ((0, 1),)  # the rejected answer is that after the last rejected look


def test_a_look_is_as_good_as_the_best_that_goes_on_from_it():
    chains = tree(("a/x", 1.0, 0.1, 0.9), ("b/z", 1.0, 0.1, 0.9), ("b/w", 0.0, 0.1, 0.1))
    # b leads to a right answer too: nothing is rejected at look 1, nor at look 2, where a has x alone
    assert chosen_and_looks(chains) == []
    # answers wrong, but something after b was read: b holds the answer
    chains = tree(("a/x", 1.0, 0.1, 0.9), ("b/z", 0.0, 0.1, 0.9), ("c/w", 0.0, 0.1, 0.1))
    assert chosen_and_looks(chains) == [(0, (2, None))]


def test_own_scores_each_look_by_its_own_crop():
    own = Rule(inner="own")
    chains = tree(("a/x", 1.0, 0.1, 0.9), ("a/y", 0.0, 0.1, 0.1), ("b/z", 0.0, 0.1, 0.1))
    assert chosen_and_looks(chains, own) == []  # the first crop of the right chain does not hold the answer
    chains = tree(("a/x", 1.0, 0.9, 0.9), ("a/y", 0.0, 0.9, 0.1), ("b/z", 0.0, 0.1, 0.9))
    assert chosen_and_looks(chains, own) == [(0, (2, 1))]


def test_a_chain_that_answered_early_is_no_second_look():
    chains = tree(("a/x", 1.0, 0.1, 0.9), ("a", 0.0, 0.1), ("b", 0.0, 0.1))
    assert chosen_and_looks(chains) == [(0, (2, None))]
    # the chosen one may be of one look, too
    assert chosen_and_looks(tree(("a", 1.0, 0.9), ("b/z", 0.0, 0.1, 0.1))) == [(0, (1,))]


def test_box_scores_are_asked_for_only_where_they_decide():
    decision = decide(tree(("a/x", 1.0), ("a/y", 0.0), ("b/z", 0.0)), CODE)
    assert (decision.wanted, decision.look) == (0, 1)  # the last crop first: under `best` it decides alone
    decision = decide(tree(("a/x", 1.0, "?", 0.9), ("a/y", 0.0), ("b/z", 0.0)), CODE)
    assert (decision.wanted, decision.look) == (2, 0)
    assert decide(tree(("a/x", 1.0), ("a/y", 1.0)), CODE).wanted is None


def test_paper_mode_prefers_per_look_too_and_uses_nothing_twice():
    rule = Rule("paper", pairs=2)
    chains = tree(("a/x", 1.0, 0.1, 0.9), ("a/y", 0.0, 0.1, 0.1), ("b/z", 0.1, 0.1, 0.1), ("c/w", 0.9, 0.1, 0.9))
    # the best chain, x (1.9), takes b at look 1 and y at look 2; w (1.8) finds b used
    assert chosen_and_looks(chains, rule) == [(0, (2, 1))]


def test_a_difference_is_between_looks_drawn_at_one_place():
    apart, own = Rule(min_difference=0.2), Rule(min_difference=0.2, inner="own")
    chains = tree(("a/x", 1.0, 0.5, 0.6), ("a/y", 0.0, 0.5, 0.3), ("b/z", 0.0, 0.35, 0.25))
    # look 1: a is as good as x, .6, and b as its own .35: .25 apart; look 2: x .6, y .3. Their own: .5 and .35 are .15 apart
    assert chosen_and_looks(chains, CODE) == []
    assert chosen_and_looks(chains, apart) == [(0, (2, 1))]
    assert chosen_and_looks(chains, own) == [(0, (None, 1))]
    # of the right chains the one whose last crop scores best, against the worst of its siblings
    chains = tree(("a/x", 1.0, 0.5, 0.6), ("a/v", 1.0, 0.5, 0.7), ("a/y", 0.0, 0.5, 0.45), ("a/w", 0.0, 0.5, 0.3))
    assert chosen_and_looks(chains, apart) == [(1, (None, 3))]
    # what a missing score leaves unknown is not rejected
    chains = tree(("a/x", 1.0, 0.5, 0.6), ("b/z", 0.0, 0.3, 0.2), ("c/u", 0.0, 0.1))
    chains[2].score_look(1, Score(None, "failed"))
    assert chosen_and_looks(chains, apart) == [(0, (1, None))]


values = st.sampled_from([None, 0.0, 0.2, 0.5, 0.8, 1.0])
flat = st.lists(st.tuples(values, values), max_size=6)
rules = st.builds(
    Rule,
    st.just("code") | st.just("paper"),
    box_critic=st.booleans(),
    pairs=st.sampled_from([1, 3]),
    min_difference=st.sampled_from([None, 0.3]),
)


def scored(value):
    return Score(value, "" if value is not None else "failed")


@settings(max_examples=300, deadline=None)
@given(flat, rules)
def test_a_tree_of_one_level_is_one_look(scores, rule):
    one = [Candidate(answer_score=scored(a), box_score=scored(b)) for a, b in scores]
    several = [
        Candidate(
            answer_score=scored(a), looks=(CandidateLook(Box(0.0, 0.0, 1.0, 1.0), score=scored(b), place=(i, 0)),)
        )
        for i, (a, b) in enumerate(scores)
    ]
    assert decide(several, rule) == decide(one, rule)
    assert all(
        looks == (rejected,)
        for (_, rejected), looks in zip(decide(one, rule).pairs, decide(one, rule).looks, strict=True)
    )


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "a/x", "a/y", "a/z", "b/x", "b/y", "c/x"]), values),
        max_size=7,
        unique_by=lambda leaf: leaf[0],
    ),
    st.dictionaries(st.sampled_from(["a", "b", "c", "a/x", "a/y", "a/z", "b/x", "b/y", "c/x"]), values),
    st.builds(
        Rule,
        st.just("code") | st.just("paper"),
        pairs=st.sampled_from([1, 3]),
        inner=st.sampled_from(["best", "own"]),
        min_difference=st.sampled_from([None, 0.3]),
    ),
)
@example(  # the last look's score of b/x fails, though b alone is rejected by its own crop
    [("a", 0.5), ("b/x", 0.0)], {"b": 0.0, "a": 0.5, "b/x": None}, Rule(inner="own", min_difference=0.3)
)
@example(  # b is not rejected, and is left out whole all the same, for b/x's score fails: c/x is the worst then
    [("a", 1.0), ("b/x", 0.0), ("c/x", 0.2)], {"a": 1.0, "b": 0.5, "b/x": None, "c": 0.0, "c/x": 0.0}, Rule()
)
def test_asking_lazily_gives_the_pairs_of_asking_everything(leaves, boxes, rule):
    def made():
        chains = tree(*[(path, 0.0) for path, _ in leaves])
        for chain, (_, answer) in zip(chains, leaves, strict=True):
            chain.answer_score = scored(answer)
        return chains

    def true_score(path, look):
        return scored(boxes.get("/".join(path.split("/")[: look + 1]), 0.0))

    known = made()
    while (decision := decide(known, rule)).wanted is not None:
        place, look = decision.wanted, decision.look
        assert known[place].look_score(look) is None, "asked twice"
        known[place].score_look(look, true_score(leaves[place][0], look))
    every = made()
    for place, (path, _) in enumerate(leaves):
        for look in range(every[place].depth):
            every[place].score_look(look, true_score(path, look))
    found, whole = decide(known, rule), decide(every, rule)
    assert (found.pairs, found.looks) == (whole.pairs, whole.looks)


# --- what is drawn


def test_pairs_say_per_look_what_is_chosen_and_rejected(tmp_path):
    manifest = make(tmp_path, n=200)
    rows = list(read_rows(tmp_path / "pairs.jsonl", PairRow))
    assert len(rows) == manifest["funnel"]["pairs"] > 20
    for row in rows:
        chosen, rejected = row.chosen, row.rejected
        assert row.protocol == "zoom:2" and chosen.box is None and len(chosen.looks) == len(rejected.looks)
        assert any(rejected.looks) and chosen.answer == row.answers[0] != rejected.answer
        assert (
            chosen.answer_text.endswith(f"<answer>{chosen.answer}</answer>")
            and chosen.answer_text != rejected.answer_text
        )
        for a, b in zip(chosen.looks, rejected.looks, strict=True):
            assert b is None or iou(Box(*a), Box(*b)) <= 0.05 or b in chosen_alternatives(tmp_path, row)
    looks = manifest["looks"]
    assert looks["preferences"]["look1"] > looks["preferences"]["look2"] > 5
    # the poster is chosen where the sign was read in it, and the sign itself at the second look
    assert looks["boxes"]["look1"]["wp"]["percent"] > 80 and looks["boxes"]["look2"]["wp"]["percent"] > 80
    assert manifest["request"]["sampling"]["later_attempts"] == 1 and manifest["request"]["protocol"] == "zoom/v1:2"


def chosen_alternatives(folder, row):
    """Boxes of other attempts of the question: the controller keeps those of one attempt apart."""
    lines = [json.loads(line) for line in (folder / "chains.jsonl").read_text().splitlines()]
    trials = next(line for line in lines if line["id"] == row.id)["trials"]
    return [tuple(look["box"]) for trial in trials for look in trial["looks"]]


def test_pairs_are_trained_on_as_they_are(tmp_path):
    from PIL import Image

    make(tmp_path / "run")
    for i in range(N // 2):
        Image.new("RGB", (400, 300)).save(tmp_path / f"p{i}.png")
    pairs = load_preferences(DataSection(path=tmp_path / "run" / "pairs.jsonl", pictures=tmp_path))
    assert pairs and all(len(p.chosen.looks) == len(p.rejected.looks) for p in pairs)
    said = [look.text is not None for p in pairs for look in p.chosen.looks]
    assert sum(said) > 0.9 * len(said)  # on-policy words, but where a look at a random box went on to a right answer


def test_batches_faults_and_the_disk_change_no_byte(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b", batch_size=7, faults=0.2)
    for name in ("pairs.jsonl", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    known = {s.id: s for s in questions(N)}
    for line in (tmp_path / "a" / "chains.jsonl").read_text().splitlines():
        value = json.loads(line)
        state = from_json(value, known[value["id"]])
        assert to_json(state) | {"crc32": value["crc32"]} == value
        # chains of one beginning share its look, and so its score
        by_place = {}
        for chain in state.candidates:
            for k, look in enumerate(chain.looks):
                key = tuple(one.place for one in chain.looks[: k + 1])
                assert by_place.setdefault(key, look) is look


def without_scores(folder):
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    for row in rows:
        del row["win"]["scores"], row["lose"]["scores"]
    return rows


def test_exhaustive_scoring_gives_the_same_pairs(tmp_path):
    lazy = make(tmp_path / "lazy")
    full = make(tmp_path / "full", exhaustive=True)
    # but for the scores of first looks, which nothing hung on
    assert without_scores(tmp_path / "lazy") == without_scores(tmp_path / "full")
    assert full["funnel"]["box_scores"]["not_needed"] == 0 < lazy["funnel"]["box_scores"]["not_needed"]


def test_every_look_has_as_many_others_as_asked_for(tmp_path):
    class Plain(DeepPolicy):
        """Never answers early, never calls in vain, and no two boxes alike."""

        def say(self, request, sample, rng):
            text = request.turns[-1].text()
            if "No look is left" in text:
                return "<answer>A</answer>"
            return super().say(request, sample, _Above(rng))

    make(tmp_path, n=4, policy=Plain, sampling={"attempts": 2, "later_attempts": 2}, diversity="none")
    for line in map(json.loads, (tmp_path / "chains.jsonl").read_text().splitlines()):
        # 2 attempts of two boxes, and from each of the 4 two attempts of two: 16 chains
        assert len(line["trials"]) + line["repeats"] == 16 and line["attempts"] == [""] * (2 + 4 * 2)


class _Above:
    """Dice that never show less than .2."""

    def __init__(self, rng):
        self.rng = rng

    def random(self):
        return 0.2 + 0.8 * self.rng.random()

    def __getattr__(self, name):
        return getattr(self.rng, name)


def test_the_oracle_holds_each_look_against_its_own_true_box(tmp_path):
    samples, asked = questions(1), recipe(tmp_path, critic={"kind": "oracle"}, exhaustive=True)
    policy = DeepPolicy("sft", samples)
    sampler = PairSampler(policy, make_critic("oracle", None, "exact"), plan_of(asked, policy))
    (state,) = sampler.batch(samples)
    scores = {(k, look.box.xyxy): look.score.value for chain in state.candidates for k, look in enumerate(chain.looks)}
    poster, sign = samples[0].boxes
    for (k, box), value in scores.items():
        assert value == pytest.approx(iou(Box(*box), (poster, sign)[k]))
    assert pairs_of(state, asked.select.rule()) is not None


def test_later_looks_are_kept_apart_within_the_picture_their_numbers_lie_in():
    import random

    near = [BoxProposal(Box(50.0, 50.0, 90.0, 80.0), "a"), BoxProposal(Box(52.0, 51.0, 90.0, 80.0), "b")]
    (attempt,) = control_again(near, 1, (40, 40, 200, 160), "paper", [random.Random(1)])
    first, second = attempt.boxes
    assert first.box == near[0].box and second.source == "random" and iou(first.box, second.box) == 0.0
    assert second.box.x1 >= 40 and second.box.x2 <= 200 and second.box.y1 >= 40 and second.box.y2 <= 160
    (alone,) = control_again(near[:1], 1, (40, 40, 200, 160), "paper", [random.Random(1)])
    assert [p.text for p in alone.boxes] == ["a"]


# --- refused


def test_what_training_would_ask_otherwise_is_refused(tmp_path):
    samples = questions(2)

    def plan(policy, **more):
        return plan_of(recipe(tmp_path, **more), policy)

    native = DeepPolicy("sft", samples)
    native.native_tools = True
    with pytest.raises(UsageError, match="told of tools in its own way"):
        plan(native)
    few = DeepPolicy("sft", samples)
    few.max_pictures = 2
    with pytest.raises(UsageError, match=r"takes 2 pictures, and zoom:2 may look 2 times"):
        plan(few)
    with pytest.raises(UsageError, match="says itself what comes back"):
        plan(DeepPolicy("sft", samples), crop="viscot_square112")
    with pytest.raises(UsageError, match="does not look"):
        plan(DeepPolicy("sft", samples), protocol="zoom:0")
    with pytest.raises(ValueError, match="later_attempts is of several looks"):
        recipe(tmp_path, protocol="visrl_train", sampling={"later_attempts": 2})


def test_one_look_of_a_protocol_of_several_is_a_pair_too(tmp_path):
    manifest = make(tmp_path, n=100, protocol="zoom:1")
    rows = list(read_rows(tmp_path / "pairs.jsonl", PairRow))
    assert rows == [] or {len(row.chosen.looks) for row in rows} == {1}
    assert manifest["funnel"]["questions"]["parsed"] > 50
    assert Path(tmp_path / "manifest.json").is_file() and replace(questions(1)[0]).boxes


class DeepReader(DeepCritic):
    """Gives the right answer .6 where the crop is the sign, and each wrong one .1; elsewhere all of them .2."""

    scores_texts = True

    def loglikelihood(self, requests, completions):
        return [self._read(request, text) for request, text in zip(requests, completions, strict=True)]

    def _read(self, request, text):
        sample = self.known[request.key]
        readable = iou(crops(request)[-1], sample.box) > 0.35
        return LogLikelihood(math.log((0.6 if text == sample.answers[0] else 0.1) if readable else 0.2))


def test_a_margin_scores_every_look_and_a_difference_makes_pairs_of_them(tmp_path):
    reader = DeepReader("org", questions(N))
    manifest = make(tmp_path / "lazy", critic=MarginCritic(reader), select={"min_difference": 0.3})
    make(tmp_path / "full", critic=MarginCritic(reader), select={"min_difference": 0.3}, exhaustive=True)
    assert (tmp_path / "lazy/pairs.jsonl").read_bytes() == (tmp_path / "full/pairs.jsonl").read_bytes()
    funnel = manifest["funnel"]
    # a sign that is read scores .6 / .7 = .857, any other crop .2 / .4 = .5: no look falls to .2, so no threshold gives a pair
    assert funnel["pairs"] == funnel["pairs_by_difference"] > 5
    chosen = [row.chosen for row in read_rows(tmp_path / "lazy/pairs.jsonl", PairRow)]
    last = {chain.scores[f"look{len(chain.looks)}"] for chain in chosen}
    assert last == {0.857143}  # six digits are kept
