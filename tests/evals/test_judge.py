import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from visrl.errors import UsageError
from visrl.evals import judge
from visrl.evals.judge import EndpointJudge, JudgeItem, anls, contains, exact, is_papers, make_judge, read_reply


@pytest.mark.parametrize(
    ("standard", "answer", "same"),
    [
        ("No", "no.", 1.0),
        ("the dog", "A dog!", 1.0),
        ("1,000", "1000", 1.0),
        ("3.5", "3.5", 1.0),
        ("3.5", "35", 0.0),
        ("it's", "it s", 1.0),
        ("No", "no, there is none", 0.0),
        ("", "", 1.0),
        ("dog", "", 0.0),
    ],
)
def test_exact(standard, answer, same):
    assert exact(standard, answer) == same


def test_contains_wants_whole_words():
    assert contains("dog", "There is a Dog, I think") == 1.0
    assert contains("dog", "hotdog") == 0.0
    assert contains("The", "a cat") == 0.0  # nothing but an article is left of it
    assert contains("", "x") == 0.0


def test_anls_by_hand():
    assert anls("hello", "hallo") == pytest.approx(1 - 1 / 5)
    assert anls("abcd", "abxy") == 0.0  # a distance of half the length is too far
    assert anls("Ab  C", "ab c") == 1.0
    assert anls("", "") == 1.0
    assert anls("yes", "y" * 1_000_000) == 0.0


def test_rules_take_the_best_standard_answer_and_leave_none_unscored():
    items = [JudgeItem("a", "q", ("cat", "dog"), "dog"), JudgeItem("b", "q", (), "dog")]
    first, second = make_judge("exact").judge_many(items)
    assert first.value == 1.0
    assert (second.value, second.reason) == (None, "the sample has no standard answer")


@pytest.mark.parametrize("name", ["exact", "anls", "contains"])
def test_offline_judges_say_that_they_are_not_the_paper_s(name):
    assert "not the paper's judge" in make_judge(name).description
    assert not is_papers(make_judge(name).name)
    assert make_judge(name).kind == "rule"


def test_the_paper_s_judge_is_model_endpoint_and_prompt():
    real = make_judge("openai:https://api.openai.com/v1#gpt-3.5-turbo-1106")
    assert real.name == "openai:api.openai.com#gpt-3.5-turbo-1106/viscot/v1/T0"
    assert is_papers(real.name)
    for other in ("openai:http://localhost:8000/v1#gpt-3.5-turbo-1106", "openai:https://api.openai.com/v1#gpt-4o"):
        assert not is_papers(make_judge(other).name)
    assert not is_papers(None)


@pytest.mark.parametrize(
    "spec", ["exakt", "", "openai:", "openai:https://x/v1", "openai:ftp://x#m", "openai:https://u:p@x/v1#m"]
)
def test_wrong_judges_are_wrong_use_and_no_credential_is_repeated(spec):
    with pytest.raises(UsageError) as caught:
        make_judge(spec)
    assert caught.value.hint
    assert "u:p@" not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("score: 0.8", 0.8),
        ("Score: 1", 1.0),
        ("score: 7", 1.0),
        ("Score: 8/10", 0.8),
        ("score: 80%", 0.8),
        ("score: 80 %", 0.8),
        ("score: 4 out of 5", 0.8),
        ("score: 1/1", 1.0),
        ("score: 0/0", None),
        ("score: 1 (out of 1)", 1.0),
        ("score: 0.5.", 0.5),
        ("score: .25", 0.25),
        ("score: 1 and score: 0", None),
        ("0.8", None),
        ("", None),
        ("score: high", None),
        ("score: 0.8.1", None),
        ("score: " + "9" * 400, 1.0),
    ],
)
def test_replies(reply, value):
    assert read_reply(reply).value == value


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server that answers by what stands in the answer it is asked to judge."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen, self.running, self.most, self.lock = [], 0, 0, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append((self.path, self.headers["Authorization"], body))
            server.running += 1
            server.most = max(server.most, server.running)
        user = body["messages"][1]["content"]
        tries = sum(seen[2]["messages"][1]["content"] == user for seen in server.seen)
        threading.Event().wait(0.02)
        with server.lock:
            server.running -= 1
        if "down" in user or ("shaky" in user and tries == 1):
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        text = "I would say so" if "vague" in user else "score: 0.7"
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        reply["choices"] = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = Server()
    yield server
    server.shutdown()


def at(server, **more):
    return EndpointJudge(f"http://127.0.0.1:{server.server_port}/v1", "m", **more)


def item(answer):
    return JudgeItem(answer, "What is it?", ("a dog", "dog"), answer)


def test_the_endpoint_gets_the_official_prompt_and_its_failures_are_unscored(server):
    found = at(server, retries=1).judge_many([item("good"), item("vague"), item("down"), item("shaky")])
    assert [score.value for score in found] == [0.7, None, None, 0.7]
    assert found[1].reason == "judge: 0 scores in the reply, not one"
    assert found[2].reason == "judge: request failed: InternalServerError"
    path, key, body = next(seen for seen in server.seen if "good" in seen[2]["messages"][1]["content"])
    assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", "Bearer sk-secret", "m", 0.0)
    assert body["messages"][0] == {"role": "system", "content": judge.SYSTEM}
    assert body["messages"][1]["content"] == (
        "\nquestion: <image>\nWhat is it?\nstandard answer: a dog\nmodel's answer: good\n"
    )


def test_requests_at_a_time_are_bounded_and_answers_come_in_order(server):
    found = at(server, concurrency=3).judge_many([item("vague" if i % 5 == 0 else f"good {i}") for i in range(30)])
    assert [score.value is None for score in found] == [i % 5 == 0 for i in range(30)]
    assert server.most <= 3


def test_braces_and_megabytes_in_an_answer_are_data(server):
    assert at(server).judge_many([item("{question} %s" + "x" * 1_000_000)])[0].value == 0.7
    assert len(server.seen[0][2]["messages"][1]["content"]) < 5_000


def test_no_server_is_unscored_not_a_crash():
    closed = Server()
    closed.shutdown()
    closed.server_close()
    (found,) = at(closed, retries=0).judge_many([item("x")])
    assert (found.value, found.reason) == (None, "judge: request failed: APIConnectionError")
    assert at(closed).judge_many([]) == []


def test_the_paper_s_endpoint_without_a_key_is_wrong_use(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UsageError, match="key"):
        make_judge("openai:https://api.openai.com/v1#gpt-3.5-turbo-1106").judge_many([item("x")])
    assert "sk-" not in make_judge("openai:http://h/v1#m").name


@pytest.mark.parametrize(
    ("standard", "answer", "equal"),
    [
        ("A", "", 0),  # nothing but an article is still something
        ("The", "An", 0),
        ("THE", "...", 0),
        ("A", "a.", 1),
        ('"A"', "A", 1),
        ("", "", 1),
        ("", "...", 0),
        ("?", "?", 1),
        ("C++", "C#", 0),
        ("C++", "C", 0),
        ("C#", "C", 0),
        ("C++", "c++.", 1),
        ("-5", "5", 0),
        ("-5", "−5", 1),  # the minus of mathematics
        ("$5", "5%", 0),
        ("$5", "€5", 0),
        ("$", "€", 0),
        ("$5", "5", 1),  # a unit sign may be left out
        ("-$1,000.50", "$-1000.50", 1),
        ("35+", "35", 0),
        ("A+", "A-", 0),
        ("+100%", "100%", 1),  # a plus before a number says nothing
        ("#7", "7", 1),
        ("1985 - 1989", "1985-1989", 1),  # a dash between numbers is no sign
        ("x-ray", "x ray", 1),
    ],
)
def test_what_distinguishes_answers_survives(standard, answer, equal):
    assert exact(standard, answer) == equal
    assert exact(answer, standard) == equal


def test_a_standard_answer_with_a_sign_stands_in_an_answer_with_it():
    assert contains("-5", "it is -5 degrees") == 1.0
    assert contains("-5", "it is 5 degrees") == 0.0
    assert contains("$5", "€5, no, $5") == 1.0
    assert contains("$5", "it costs €5") == 0.0
    assert contains("A", "this is a dog") == 0.0


def test_judges_read_the_answer_not_the_thought():
    items = [JudgeItem("a", "q", ("cat",), "<think>a dog?</think>cat"), JudgeItem("b", "q", ("cat",), "<think>cat")]
    first, second = make_judge("contains").judge_many(items)
    assert (first.value, second.value, second.reason) == (1.0, 0.0, "unparsed: the thought never ends")


def test_the_distance_of_long_answers_is_levenshtein_s():
    # 8,000 letters, 800 of them another: 1 - 800 / 8000
    assert anls("ab" * 4000, "ab" * 3600 + "xx" * 400) == pytest.approx(0.9)


def test_half_the_length_is_too_far_whatever_the_lengths():
    assert anls("ab", "abc") == pytest.approx(2 / 3)  # one of three letters
    assert anls("ab", "abcd") == 0.0  # two of four
    assert anls("abc", "abcde") == pytest.approx(3 / 5)
    assert anls("abcd", "abxd") == pytest.approx(3 / 4)
    assert anls("a", "") == anls("", "a") == 0.0


def test_words_in_a_row_with_their_units():
    assert contains("red car", "the car is red") == 0.0
    assert contains("red car", "a big red car") == 1.0
    assert contains("red $5", "5 red €5, then red $5") == 1.0  # the second place has the unit
    assert contains("red $5", "red €5 red €5") == 0.0
    assert contains("$5 red", "red 5 red") == 1.0  # a unit sign may be left out
    assert contains("b $5", "b b $5 b €5") == 1.0
    assert exact("red car", "red") == exact("red", "red car") == 0.0


def test_grades_need_a_free_end_and_short_words():
    assert exact("AB-", "AB") == 0.0
    assert exact("ABC-", "ABC") == 1.0  # a dash behind a word
    assert exact("C+++", "C") == 1.0  # three are no mark


def test_of_many_places_the_first_thousand_are_looked_at():
    # 999 wrong units, then the right one; one more, and it is out of sight
    assert contains("$5", "€5 " * 999 + "$5") == 1.0
    assert contains("$5", "€5 " * 1000 + "$5") == 0.0


def test_a_long_text_is_compared_by_its_first_hundred_thousand_letters():
    assert exact("b" + "a" * 99_999, "b" + "a" * 99_999 + "c") == 1.0
    assert exact("b" + "a" * 99_998, "b" + "a" * 99_998 + "c") == 0.0


def test_all_judges_have_the_paper_s_settings_by_default():
    found = EndpointJudge("http://h:1/v1", "m")
    assert (found.temperature, found.concurrency, found.retries, found.timeout, found.kind) == (
        0.0,
        16,
        7,  # eight tries, as a policy behind a server has
        60.0,
        "model",
    )
    assert found.name == "openai:h:1#m/viscot/v1/T0" and EndpointJudge("http://h/v1", "m", 0.5).name.endswith(
        "#m/viscot/v1/T0.5"
    )
    assert "not the paper's judge" in found.description
    assert "at temperature 0" in make_judge("openai:https://api.openai.com/v1#gpt-3.5-turbo-1106").description


@pytest.mark.parametrize(
    ("reply", "value"), [("score: 0", 0.0), ("score: 1.0", 1.0), ("score: 1.5", 1.0), ("score: 0.0.", 0.0)]
)
def test_scores_at_the_ends(reply, value):
    assert read_reply(reply).value == value


class Fails:
    """A judge that raises on any batch that holds "bad"."""

    name = description = "fails"
    kind = "rule"

    def __init__(self, error):
        self.error, self.calls = error, []

    def judge_many(self, items):
        self.calls.append([item.answer for item in items])
        if "bad" in self.calls[-1]:
            raise self.error
        return [judge.Score(1.0) for _ in items]


def test_one_answer_that_breaks_a_judge_takes_no_other_with_it():
    broken = Fails(ValueError("odd"))
    found = judge.verdicts(broken, [item("good"), item("bad"), item("fine")])
    assert [score.value for score in found] == [1.0, None, 1.0]
    assert found[1].reason == "judge: ValueError: odd"
    assert broken.calls == [["good", "bad", "fine"], ["good"], ["bad"], ["fine"]]
    with pytest.raises(UsageError):
        judge.verdicts(Fails(UsageError("no key", "")), [item("bad")])


def test_answers_of_four_thousand_characters_are_shown_whole():
    assert judge._cut("x" * 4000) == "x" * 4000
    assert judge._cut("x" * 3999 + "yz") == "x" * 3999 + "y"


def test_an_unread_thought_is_judged_without_asking(server):
    unread = JudgeItem("a", "q", ("cat",), "<think>cat")
    none = JudgeItem("b", "q", (), "cat")
    found = at(server).judge_many([unread, none])
    assert [score.value for score in found] == [0.0, None] and server.seen == []


def test_ready_judges_need_their_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert judge.ready_judge("exact").name == "exact"
    assert judge.ready_judge("openai:http://h/v1#m").key() == "none"
    with pytest.raises(UsageError, match="needs a key"):
        judge.ready_judge("openai:https://api.openai.com/v1#gpt-3.5-turbo-1106")
