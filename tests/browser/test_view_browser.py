"""The page in a real browser: filters, search, keys, two runs, hostile text, accessibility. Skips without chromium."""

import json
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest

from visrl.core.box_formats import FORMATS
from visrl.policies.protocol import FunctionPolicy
from visrl.report import write_report

CHROMIUM = os.environ.get("VISRL_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install visrl[browser]")
if CHROMIUM is None:
    pytest.skip("no chromium: apt-get install chromium, or VISRL_CHROMIUM", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[1]))
import runs_made as made  # noqa: E402


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made.drawn(tmp_path_factory.mktemp("data"), n=100)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """a: true boxes for even ids, wrong answers from 1080 on, 1099 unparsed. b: all boxes true, only 1000 answered wrong."""
    place = tmp_path_factory.mktemp("runs")
    truth = made.truth(data)

    def box_a(i):
        return "nothing here" if i == "1099" else truth[i][0] if int(i) % 2 == 0 else "[0.0, 0.2, 0.01, 0.21]"

    a = made.scripted("model-a", box_a, lambda i: truth[i][1] if int(i) < 1080 else "pink")
    b = made.scripted("model-b", lambda i: truth[i][0], lambda i: truth[i][1] if i != "1000" else "pink")
    return made.run(a, data, place / "a"), made.run(b, data, place / "b")


@pytest.fixture(scope="module")
def one(runs, tmp_path_factory):
    return write_report([runs[0]], tmp_path_factory.mktemp("one") / "report.html").as_uri()


@pytest.fixture(scope="module")
def two(runs, tmp_path_factory):
    return write_report(runs, tmp_path_factory.mktemp("two") / "report.html").as_uri()


@pytest.fixture(params=[(1440, 900, "light"), (390, 844, "dark")], ids=["wide", "phone-dark"])
def look(request, browser):
    """Open a page at a width and in a colour scheme; whatever it complains about fails the test."""
    width, height, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)

    def open_(address):
        page.goto(address)
        return page

    yield open_
    assert complaints == []
    context.close()


def count(page):
    return page.locator("#count").inner_text()


def choose(page, select, start):
    """Choose the option whose label starts so."""
    labels = page.locator(f"#{select} option").all_inner_texts()
    page.select_option(f"#{select}", label=next(label for label in labels if label.startswith(start)))


def test_filters_search_and_pages(look, one):
    page = look(one)
    assert count(page) == "100 samples"
    assert page.locator(".card").count() == 48
    assert page.locator("#where").inner_text() == "page 1 of 3"
    # ids 1080 to 1099 answer wrong: ten even ones with the true box, ten odd ones without
    for label, expected in [("wrong", 20), ("box right, answer wrong", 10), ("box wrong, answer wrong", 10),
                            ("box right, answer right", 40), ("box wrong, answer right", 40), ("unparsed", 1)]:  # fmt: skip
        choose(page, "result", f"{label} (")
        assert count(page) == f"{expected} of 100 samples", label
    assert "unparsed" in page.locator(".card").inner_text()
    choose(page, "result", "all")
    page.fill("#q", "THING 42?")
    sync_api.expect(page.locator("#count")).to_have_text("1 of 100 samples")
    assert "What colour is thing 42?" in page.locator(".card").inner_text()
    page.fill("#q", "no such words")
    sync_api.expect(page.locator("#count")).to_have_text("0 of 100 samples")
    assert page.locator(".card").count() == 0


def test_sort_by_iou(look, one):
    page = look(one)
    choose(page, "sort", "IoU, lowest")
    assert "IoU 0.00" in page.locator(".card").first.inner_text()
    choose(page, "sort", "IoU, highest")
    assert (
        "IoU 0.9" in page.locator(".card").first.inner_text() or "IoU 1.0" in page.locator(".card").first.inner_text()
    )


def test_a_sample_shows_picture_boxes_crop_and_both_turns(look, one):
    page = look(one)
    page.locator(".card").first.click()
    dialog = page.locator("#sample")
    assert dialog.is_visible()
    picture = dialog.locator("svg.scene").first
    assert "true box" in picture.get_attribute("aria-label") and "Picture" in picture.get_attribute("aria-label")
    kinds = picture.locator("rect.box").evaluate_all("all => all.map((r) => r.classList[1])")
    assert kinds == ["k-look", "k-true", "k-a"]
    dashes = [
        page.evaluate("(k) => getComputedStyle(document.querySelector('dialog .box.' + k)).strokeDasharray", k)
        for k in kinds
    ]
    assert len(set(dashes)) == 3  # told apart without colour
    loaded = page.evaluate("""async () => {
        const image = new Image(); image.src = document.querySelector("dialog svg.scene image").getAttribute("href");
        await image.decode(); return image.naturalWidth;
    }""")
    assert loaded == 320
    text = dialog.inner_text()
    for part in (
        "What colour is thing 0?",
        "true answer: red",
        "1 · look",
        "2 · answer",
        "looked at",
        "IoU with the true box",
        "box_acc",
        "Other questions about this picture",
    ):
        assert part in text
    assert "Please first provide the bounding box coordinate" in dialog.locator("pre").first.inner_text()


def test_keys(look, one):
    page = look(one)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.press("Escape")
    page.keyboard.press("f")
    assert page.evaluate("document.activeElement.id") == "result"
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowRight")
    focused = "Number(document.activeElement.dataset.position)"
    assert page.evaluate(focused) == 0
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == 1
    page.keyboard.press("ArrowDown")
    columns = page.evaluate(
        "[...document.querySelectorAll('.card')].filter((c, _, all) => c.offsetTop === all[0].offsetTop).length"
    )
    assert page.evaluate(focused) == 1 + columns
    for _ in range(50):
        page.keyboard.press("ArrowRight")
    assert page.locator("#where").inner_text() == "page 2 of 3"
    page.keyboard.press("Enter")
    number = 1 + columns + 50
    assert f"{number + 1} of 100" in page.locator("#s-title").inner_text()
    page.keyboard.press("ArrowRight")
    assert f"{number + 2} of 100" in page.locator("#s-title").inner_text()
    assert page.url.endswith(f"#sample=viscot_vsr%2F{1000 + number + 1}")
    page.keyboard.press("k")
    assert f"{number + 1} of 100" in page.locator("#s-title").inner_text()
    page.keyboard.press("j")
    page.keyboard.press("Escape")
    assert not page.locator("#sample").is_visible()
    assert page.evaluate(focused) == number + 1


def test_the_address_holds_filters_and_sample(look, one):
    page = look(f"{one}#show=wrong&iou=0-0.5&sort=high&sample=viscot_vsr%2F1081")
    assert "What colour is thing 81?" in page.locator("#sample").inner_text()
    page.keyboard.press("Escape")
    # of the twenty wrong answers the ten with odd ids have a wrong box
    assert count(page) == "10 of 100 samples"
    assert page.input_value("#sort") == "high" and page.locator("#between").inner_text() == "0.00 – 0.50"
    assert page.url.split("#")[1] == "show=wrong&sort=high&iou=0-0.5"
    page.click("#reset")
    assert count(page) == "100 samples" and page.url.split("#")[1] == "sort=high"
    page.evaluate("location.hash = 'q=thing+42%3F&show=nonsense&iou=x'")
    sync_api.expect(page.locator("#count")).to_have_text("1 of 100 samples")


def test_parts_of_the_page_are_filters(look, one):
    page = look(one)
    page.locator(".chip-rw").click()
    assert count(page) == "10 of 100 samples" and page.locator(".chip-rw").get_attribute("aria-pressed") == "true"
    # the histogram's first bar: the fifty odd ids, a corner or unparsed
    page.locator("rect[data-low='0.0']").first.click()
    assert count(page) == "50 of 100 samples" and page.locator("#between").inner_text() == "0.00 – 0.05"
    page.locator("#scores + details summary").click()
    page.locator(".scores .pick").first.click()
    assert count(page) == "100 samples" and page.input_value("#task") == "viscot_vsr"


def test_the_ids_shown_are_a_file(look, one):
    page = look(one)
    page.locator(".chip-rw").click()
    with page.expect_download() as started:
        page.click("#export")
    lines = Path(started.value.path()).read_text().splitlines()
    assert len(lines) == 10
    assert json.loads(lines[0]) == {"task": "viscot_vsr", "sample_id": "1080"}


def test_other_questions_on_the_picture(look, one):
    page = look(one)
    page.locator(".card").first.click()
    page.locator(".others button").click()
    assert "viscot_vsr · 1001" in page.locator("#s-title").inner_text()


def test_the_keyboard_alone_is_enough(look, one):
    """Tab to a kind of outcome, Enter; j and Enter to a sample of it, j to the next; ? explains; sections by their links."""
    page = look(one)
    focused = "document.activeElement.textContent"
    for _ in range(40):
        page.keyboard.press("Tab")
        if "box right, answer wrong" in page.evaluate(focused):
            break
    page.keyboard.press("Enter")
    assert count(page) == "10 of 100 samples"
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    assert "1 of 10 · viscot_vsr · 1080" in page.locator("#s-title").inner_text()
    page.keyboard.press("j")
    assert "2 of 10 · viscot_vsr · 1082" in page.locator("#s-title").inner_text()
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert "next and previous sample" in page.locator("#help").inner_text()
    page.keyboard.press("j")
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    page.locator("#sections a").last.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "about"
    assert page.url.split("#")[1] == "show=rw"  # a section's link leaves the filters alone


def test_two_runs_show_flips_first(look, two):
    page = look(two)
    # b breaks 1000 and fixes 1080 … 1099
    labels = page.locator("#result option").all_inner_texts()
    assert {"fixed in B (20)", "broken in B (1)", "right in both (79)"} <= set(labels)
    first = page.locator(".card").nth(0).inner_text()
    assert "▼ broken" in first and "A ✓ right" in first and "B ✗ wrong" in first
    assert "▲ fixed" in page.locator(".card").nth(1).inner_text()
    choose(page, "result", "broken in B")
    assert count(page) == "1 of 100 samples"
    page.locator(".card").click()
    text = page.locator("#sample").inner_text()
    assert "broken from A to B" in text and text.count("2 · answer") == 2
    assert "80.0 → 99.0 % (+19.0 ±" in page.locator("main").inner_text()
    page.keyboard.press("Escape")
    page.click("#reset")
    choose(page, "sort", "answer score A → B, largest drop")
    assert "thing 0?" in page.locator(".card").first.inner_text()
    # 1000's box is right in both; odd ids have a wrong box in A and a true one in B
    choose(page, "sort", "IoU A → B, largest gain")
    assert "A ✓ right\nIoU 0.00" in page.locator(".card").first.inner_text()


def test_the_page_fits_its_width(look, two):
    page = look(two)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if page.viewport_size["width"] > 1000:  # nothing needs a scrollbar of its own there
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        for width in (1000, 1200, 1400, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            wider = "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth).length"
            assert page.evaluate(wider) == 0, width
    page.locator(".card").first.click()
    assert page.evaluate("document.querySelector('#sample').scrollWidth <= innerWidth")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    place = tmp_path_factory.mktemp("hostile")
    return write_report([made.hostile(place)], place / "report.html").as_uri()


def test_hostile_text_runs_nothing_and_is_shown(look, hostile):
    page = look(hostile)
    for i in range(3):
        page.evaluate("(i) => { location.hash = ''; document.querySelectorAll('.card')[i].click(); }", i)
        shown = page.locator("#sample").inner_text()
        assert "<script>window.hacked=1</script>" in shown and "⟨U+202E⟩" in shown
        page.keyboard.press("Escape")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('img, textarea, iframe, object').length") == 0


def test_the_policy_would_stop_a_script_that_got_in(browser, one):
    page = browser.new_page()
    page.goto(one)
    page.evaluate("""() => {
        const script = document.createElement("script"); script.textContent = "window.hacked = 1";
        const image = document.createElement("img"); image.setAttribute("onerror", "window.hacked = 2"); image.src = "x:y";
        document.body.append(script, image);
    }""")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    page.close()


def violations(page):
    folder = Path(
        pytest.importorskip("axe_playwright_python", reason="no axe: pip install visrl[browser]").__file__
    ).parent
    page.evaluate((folder / "axe.min.js").read_text())
    found = page.evaluate("async () => (await axe.run()).violations")
    return [
        (v["impact"], v["id"], [n["html"][:120] for n in v["nodes"][:3]])
        for v in found
        if v["impact"] in ("serious", "critical", "moderate")
    ]


@pytest.fixture(scope="module")
def looks(data, tmp_path_factory):
    """Runs of several looks: one look, one faulty call, an answer behind a thought."""
    place = tmp_path_factory.mktemp("looks")
    call = '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [10, 10, 90, 60]}}</tool_call>'

    def run(name, answer):
        turns = [call, "<tool_call>x</tool_call>", f"<think>I can read it.</think><answer>{answer}</answer>"]
        policy = FunctionPolicy(name, lambda r: turns[int(r.stream or 0)], FORMATS["json_pixel"], needs_pictures=True)
        return made.run(policy, data, place / name, protocol="zoom", limit=4)

    return write_report([run("a", "red"), run("b", "green")], place / "report.html").as_uri()


def test_several_looks_are_a_path_and_the_card_shows_the_answer(look, looks):
    page = look(looks)
    # sample 0 is red, sample 1 green: of the flips, broken comes first
    assert "“green” · true: red" in page.locator(".card").first.inner_text()
    page.locator(".card").first.click()
    text = page.locator("#sample").inner_text()
    for part in ("1 · look", "2 · faulty call", "the error was returned to the model", "3 · answer", "▼ broken"):
        assert part in text
    assert "<think>I can read it.</think>" in text  # the outputs are shown whole


@pytest.mark.parametrize("which", ["one", "two", "hostile", "looks"])
def test_accessible(look, request, which):
    """axe-core finds nothing moderate or worse, in light and dark, on the page and in a sample."""
    page = look(request.getfixturevalue(which))
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert violations(page) == []
    page.locator(".card").first.click()
    assert violations(page) == []


def test_served_page_has_all_pictures(browser, runs, tmp_path):
    from visrl.report.page import write_page
    from visrl.report.pictures import Album
    from visrl.report.serve import PageServer

    album = Album()
    write_page([runs[0]], tmp_path / "report.html", album=album)
    with PageServer(tmp_path / "report.html", album) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        complaints = []
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(server.url)
        page.locator(".card").first.click()
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(100)
        assert (
            page.evaluate("performance.getEntriesByType('resource').filter((r) => r.name.includes('/picture/')).length")
            > 0
        )
        page.close()
        server.shutdown()
    assert complaints == []


# --- the other pages


@pytest.fixture(scope="module")
def index(runs, one):
    return write_report([runs[0].parent]).as_uri()


def kept(step):
    """A group of two chains, as policy-gradient training keeps it."""
    first = {"box": [1, 2, 9, 9], "box_text": made.EVIL, "unparsed": None, "answer": "yes", "rewards": {"iou": 0.5}, "advantages": {"box": 1.0}}  # fmt: skip
    chains = [first, {**first, "box": [20, 2, 30, 12], "advantages": {"box": -1.0}}]
    return {"step": step, "groups": [{"id": "1", "question": made.EVIL, "picture": "p.png", "answers": ["yes"], "chains": chains}]}  # fmt: skip


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A loop's folder: a history, and per iteration eight pairs without pictures and eight groups of the same question."""
    folder = tmp_path_factory.mktemp("training") / "loop"
    for name in ("sft", "iter1/pairs", "iter2/pairs", "iter1/rl/rollouts", "iter2/rl/rollouts"):
        (folder / name).mkdir(parents=True)
    (folder / "sft" / "history.json").write_text(json.dumps([{"step": s, "loss": 1 / s} for s in (1, 2, 3)]))
    pair = {"id": "1", "picture": "p.png", "size": [40, 20], "question": made.EVIL, "win": {"box": [1, 2, 9, 9]}, "lose": {"box": [20, 2, 30, 12]}}  # fmt: skip
    boxes = {"wp_ln": {"n": 8, "percent": 100.0, "se": 0.0}}
    manifest = json.dumps({"funnel": {"questions": {"asked": 9, "paired": 8}}, "boxes": boxes})
    for iteration in (folder / "iter1", folder / "iter2"):
        (iteration / "pairs" / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 8)
        (iteration / "pairs" / "manifest.json").write_text(manifest)
        (iteration / "rl" / "history.json").write_text('[{"step": 1, "reward": 0.5}, {"step": 8, "reward": 0.75}]')
        for step in range(1, 9):
            (iteration / "rl" / "rollouts" / f"step{step:06d}.json").write_text(json.dumps(kept(step)))
    (folder / "sft" / "metrics.json").write_text(json.dumps({"line": "answers 60.0"}))
    return write_report([folder]).as_uri()


@pytest.fixture(scope="module")
def ablations(tmp_path_factory):
    lines = [
        {"variant": v, "metric": m, "difference": d, "difference_se": 1.0}
        for v, d in (("a", -9.0), ("b", 4.0))
        for m in ("answers", "box")
    ]
    folder = tmp_path_factory.mktemp("ablations")
    (folder / "summary.json").write_text(json.dumps(lines))
    return write_report([folder]).as_uri()


def shown_rows(page):
    return page.locator("#table tbody tr:visible th").all_inner_texts()


def test_the_index_sorts_filters_and_keeps_it_in_the_address(look, index):
    page = look(index)
    assert shown_rows(page)[:2] == ["b", "a"]  # 99 and 80 of 100
    page.locator(".sort", has_text="run").click()
    assert shown_rows(page)[0] == "a" and page.url.endswith("#sort=0")
    page.locator(".sort", has_text="value").focus()
    page.keyboard.press("Enter")  # numbers: the largest first
    assert shown_rows(page)[0] == "b"
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    page.keyboard.press("/")
    page.keyboard.type("model-a")
    assert set(shown_rows(page)) == {"a"} and "q=model-a" in page.url
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # value and interval are in view on a phone, too
    assert page.locator("#table td.interval:visible").first.bounding_box()["x"] < page.viewport_size["width"] - 60


def test_the_training_page_opens_pairs_by_the_keyboard(look, training):
    page = look(training)
    cards = page.locator("details.card")
    # eight pairs and eight groups in each of two iterations, six of each shown at first
    assert cards.count() == 32 and page.locator("details.card:visible").count() == 24
    cards.first.locator("summary").focus()
    page.keyboard.press("Enter")
    assert cards.first.locator("dl").is_visible() and "<script>" in cards.first.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("which", ["index", "training", "ablations"])
def test_other_pages_are_accessible(look, request, which):
    page = look(request.getfixturevalue(which))
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert violations(page) == []
