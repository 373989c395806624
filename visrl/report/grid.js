// The grid of samples: filters, sorting, the address that holds them, cards.
const PAGE = 48;
const state = { order: [], page: 0, open: -1 };

const RESULTS = [
  ["", "all samples", () => true],
  ...(two
    ? [
        ["changed", "fixed or broken", (i) => flip(i) === "fixed" || flip(i) === "broken"],
        ["fixed", "fixed in B", (i) => flip(i) === "fixed"],
        ["broken", "broken in B", (i) => flip(i) === "broken"],
        ["both", "right in both", (i) => flip(i) === "same" && last.right[i] === 1],
        ["neither", "wrong in both", (i) => flip(i) === "same" && last.right[i] === 0],
      ]
    : []),
  ["right", "right", (i) => last.right[i] === 1],
  ["wrong", "wrong", (i) => last.right[i] === 0],
  ["rr", "box right, answer right", (i) => last.boxRight[i] === 1 && last.answerRight[i] === 1],
  ["rw", "box right, answer wrong", (i) => last.boxRight[i] === 1 && last.answerRight[i] === 0],
  ["wr", "box wrong, answer right", (i) => last.boxRight[i] === 0 && last.answerRight[i] === 1],
  ["ww", "box wrong, answer wrong", (i) => last.boxRight[i] === 0 && last.answerRight[i] === 0],
  ["unparsed", "unparsed", (i) => runs.some((run) => run.unparsed[i])],
  ["unscored", "unscored", (i) => runs.some((run) => run.status[i] < 2)],
];
const CHIPS = two ? ["fixed", "broken", "both", "neither", "unparsed", "unscored"] : ["right", "wrong", "rr", "rw", "wr", "ww", "unparsed", "unscored"];
const rank = { fixed: 1, broken: 0 };
const least = (value) => (value === null ? Infinity : value);
const change = (column, i) => (runs[0][column][i] === null || last[column][i] === null ? null : last[column][i] - runs[0][column][i]);
const down = (column) => (a, b) => least(change(column, a)) - least(change(column, b));
const up = (column) => (a, b) => least(change(column, a) === null ? null : -change(column, a)) - least(change(column, b) === null ? null : -change(column, b));
const SORTS = [
  ...(two ? [["flips", "flips first", (a, b) => (rank[flip(a)] ?? 2) - (rank[flip(b)] ?? 2)]] : []),
  ["order", "dataset order", null],
  ["low", "IoU, lowest first", (a, b) => least(last.iou[a]) - least(last.iou[b])],
  ["high", "IoU, highest first", (a, b) => least(last.iou[a] === null ? null : -last.iou[a]) - least(last.iou[b] === null ? null : -last.iou[b])],
  ["score", "answer score, lowest first", (a, b) => least(last.quality[a]) - least(last.quality[b])],
  ...(two
    ? [
        ["score-down", "answer score A → B, largest drop first", down("quality")],
        ["score-up", "answer score A → B, largest gain first", up("quality")],
        ["iou-down", "IoU A → B, largest drop first", down("iou")],
        ["iou-up", "IoU A → B, largest gain first", up("iou")],
      ]
    : []),
];
const has = (run, name) => run[name].some((value) => value !== null);
const NEEDS = { low: "iou", high: "iou", score: "quality", "score-down": "quality", "score-up": "quality", "iou-down": "iou", "iou-up": "iou" };

let haystack = null;
function searchable(i) {
  haystack ??= Array.from({ length: n }, (_, k) =>
    [shared.id[k], shared.question[k], shared.answers[k], ...runs.map((run) => run.output[k] || "")].join("\n").toLowerCase());
  return haystack[i];
}

function fillChoices() {
  const all = Array.from({ length: n }, (_, i) => i);
  for (const [value, label, test] of RESULTS) {
    const found = all.filter(test).length;
    if (found || !value) $("result").append(el("option", { value }, `${label} (${many(found)})`));
    if (CHIPS.includes(value) && found) $("chips").append(el("li", {}, el("button", { type: "button", class: `chip chip-${value}`, "data-show": value }, el("b", {}, many(found)), ` ${label}`)));
  }
  for (const [value, label] of SORTS) {
    const needs = NEEDS[value];
    if (!needs || (has(last, needs) && (!value.includes("-") || has(runs[0], needs)))) $("sort").append(el("option", { value }, label));
  }
  $("overlap").hidden = !has(last, "iou");
  const known = new Set([...shared.task, ...Object.keys(groups)]);
  for (const pick of document.querySelectorAll(".pick")) {
    if (known.has(pick.dataset.task)) pick.replaceWith(el("button", { type: "button", class: "pick", "data-task": pick.dataset.task, title: "show its samples" }, ...pick.childNodes)); // with its line breaks
  }
}

// --- the address: filters and the open sample, so that what is seen can be shared

const FIELDS = { q: "q", show: "result", task: "task", sort: "sort" };
const first = (id) => ($(id).options ? $(id).options[0]?.value ?? "" : "");

function writeAddress() {
  const parts = new URLSearchParams();
  for (const [name, id] of Object.entries(FIELDS)) if ($(id).value !== first(id)) parts.set(name, $(id).value);
  if ($("low").value !== "0" || $("high").value !== "1") parts.set("iou", `${$("low").value}-${$("high").value}`);
  if (state.open >= 0) parts.set("sample", nameOf(state.open));
  const text = parts.toString();
  history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

function readAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  for (const [name, id] of Object.entries(FIELDS)) {
    $(id).value = parts.get(name) ?? first(id);
    if ($(id).selectedIndex === -1) $(id).value = first(id); // an option that this page does not have
  }
  const [low, high] = (parts.get("iou") ?? "0-1").split("-").map(Number);
  [$("low").value, $("high").value] = [low >= 0 ? low : 0, high <= 1 ? high : 1];
  apply();
  if (parts.has("sample")) open(Array.from({ length: n }, (_, i) => i).find((i) => nameOf(i) === parts.get("sample")) ?? -1);
  else if ($("sample").open) $("sample").close();
}

function apply() {
  const words = $("q").value.toLowerCase().trim();
  const named = $("task").value;
  const tasks = named ? new Set(groups[named] || [named]) : null;
  const test = RESULTS.find(([value]) => value === $("result").value)[2];
  const compare = SORTS.find(([value]) => value === $("sort").value)[2];
  const [low, high] = [Number($("low").value), Number($("high").value)];
  const whole = low === 0 && high === 1;
  // as in the histogram: from low up to high, the last bin closed
  const between = (iou) => iou !== null && iou >= low && (iou < high || high === 1);
  const order = [];
  for (let i = 0; i < n; i++) {
    if ((!tasks || tasks.has(shared.task[i])) && test(i) && (!words || searchable(i).includes(words)) && (whole || between(last.iou[i]))) order.push(i);
  }
  if (compare) order.sort((a, b) => compare(a, b) || a - b);
  state.order = order;
  $("between").textContent = whole ? "any" : `${low.toFixed(2)} – ${high.toFixed(2)}`;
  $("reset").hidden = !words && !named && !$("result").value && whole;
  for (const chip of document.querySelectorAll(".chip")) chip.setAttribute("aria-pressed", String(chip.dataset.show === $("result").value));
  show(0);
  writeAddress();
}

function reset() {
  $("q").value = $("task").value = $("result").value = "";
  [$("low").value, $("high").value] = [0, 1];
}

// Show the samples of a part of the page that was clicked: a task, a kind of outcome, a bar of a histogram.
function showOnly(choice) {
  reset();
  if (choice.task) $("task").value = choice.task;
  if (choice.show) $("result").value = choice.show;
  if (choice.low !== undefined) [$("low").value, $("high").value] = [choice.low, choice.high];
  apply();
  $("samples").scrollIntoView();
  $("samples").focus({ preventScroll: true });
}

// The samples shown, one JSON object a line, as a file.
function downloadIds() {
  const lines = state.order.map((i) => `${JSON.stringify({ task: shared.task[i], sample_id: shared.id[i] })}\n`);
  const link = el("a", { download: "samples.jsonl", href: URL.createObjectURL(new Blob(lines, { type: "application/jsonl" })) });
  link.click();
  URL.revokeObjectURL(link.href);
}

// --- cards

function card(i, position) {
  const lines = runs.map((run, r) => {
    const [kind, text] = verdict(run, i);
    const iou = run.iou[i] === null ? null : el("span", { class: "iou" }, `IoU ${number(run.iou[i])}`);
    return el("span", { class: `verdict ${kind}` }, el("span", {}, two ? `${"AB"[r]} ${text}` : text), iou);
  });
  const changed = FLIPS[flip(i)];
  if (changed) lines.unshift(el("span", { class: `verdict ${changed[0]}` }, changed[1]));
  for (const run of runs) if (run.unparsed[i]) lines.push(el("bdi", { class: "said v-odd", dir: "auto" }, `unparsed: ${run.unparsed[i]}`));
  const said = shared.answers[i] ? `“${last.output[i] || "–"}” · true: ${shared.answers[i]}` : "";
  const words = el("bdi", { class: "ask", dir: "auto" }, shared.question[i] || shared.id[i]);
  const text = el("span", { class: "text" }, ...lines, words, said ? el("bdi", { class: "said", dir: "auto" }, said) : null);
  const href = `#${new URLSearchParams({ sample: nameOf(i) })}`;
  return el("li", {}, el("a", { class: "card", href, "data-i": i, "data-position": position }, el("span", { class: "shot" }, scene(i, false)), text));
}

function show(page, focus = -1) {
  const pages = Math.max(1, Math.ceil(state.order.length / PAGE));
  state.page = Math.min(Math.max(page, 0), pages - 1);
  const start = state.page * PAGE;
  const here = state.order.slice(start, start + PAGE);
  $("grid").replaceChildren(...here.map((i, k) => card(i, start + k)));
  $("count").textContent = state.order.length === n ? `${many(n)} samples` : `${many(state.order.length)} of ${many(n)} samples`;
  $("where").textContent = `page ${state.page + 1} of ${pages}`;
  $("pager").hidden = pages === 1;
  $("back").disabled = state.page === 0;
  $("on").disabled = state.page === pages - 1;
  if (focus >= 0) $("grid").querySelector(`[data-position="${focus}"]`)?.focus();
}

function walk(key) {
  const cards = [...$("grid").querySelectorAll(".card")];
  if (!cards.length) return;
  const current = document.activeElement?.dataset?.position;
  if (current === undefined) return cards[0].focus();
  const top = cards[0].offsetTop;
  const columns = cards.filter((c) => c.offsetTop === top).length || 1;
  const step = { ArrowLeft: -1, ArrowRight: 1, k: -1, j: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const target = Math.min(Math.max(Number(current) + step, 0), state.order.length - 1);
  const page = Math.floor(target / PAGE);
  if (page !== state.page) show(page, target);
  else $("grid").querySelector(`[data-position="${target}"]`).focus();
}
