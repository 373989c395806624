"use strict";
// The grid, its filters and the page of one sample. Text from models and data files enters the page by textContent only.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("index").textContent);
  const { n, shared, runs } = data;
  const two = runs.length > 1;
  const last = runs[runs.length - 1];
  const PAGE = 48;
  const SVG = "http://www.w3.org/2000/svg";
  const embedded = new Set(data.embedded || []);
  const state = { order: [], page: 0, open: -1 };

  // --- elements

  function el(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children.filter((child) => child !== null));
    return node;
  }
  function svg(name, attributes, ...children) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }
  const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits).replace(/^0(?=\.)/, ""));
  const corners = (box) => box.map((x) => Math.round(x)).join(", ");

  // --- pictures and boxes

  function pictureOf(i) {
    const k = shared.picture[i];
    if (k === null) return null;
    if (data.served) return `/picture/${k}`;
    return embedded.has(k) ? $(`p${k}`).textContent : null;
  }
  const sizeOf = (i) => shared.size[i] || data.sizes[shared.picture[i]] || null;

  function boxesOf(i, looks = true) {
    const found = [];
    for (const [r, run] of runs.entries()) {
      const looked = run.looked && run.looked[i];
      const box = run.box && run.box[i];
      if (looks && looked && (!box || corners(looked) !== corners(box))) found.push(["k-look", looked, two ? `looked at by ${"AB"[r]}` : "looked at"]);
    }
    if (shared.box[i]) found.push(["k-true", shared.box[i], "true box"]);
    for (const [r, run] of runs.entries()) {
      if (run.box[i]) found.push([r ? "k-b" : "k-a", run.box[i], two ? `predicted by ${"AB"[r]}` : "predicted box"]);
    }
    return found;
  }

  function describe(i) {
    const parts = boxesOf(i).map(([, box, what]) => `${what} ${corners(box)}`);
    return `${pictureOf(i) ? "Picture" : "No picture, an empty canvas"}${parts.length ? ` with ${parts.join("; ")}` : ""}`;
  }

  function backdrop(i, [width, height]) {
    const source = pictureOf(i);
    if (source) return [svg("image", { href: source, x: 0, y: 0, width, height, preserveAspectRatio: "none" })];
    return [
      svg("rect", { class: "canvas", x: 0, y: 0, width, height }),
      svg("line", { class: "cross", x1: 0, y1: 0, x2: width, y2: height }),
      svg("line", { class: "cross", x1: 0, y1: height, x2: width, y2: 0 }),
    ];
  }

  // The picture with its boxes; without a known size, the picture alone.
  function scene(i, label) {
    const size = sizeOf(i);
    if (!size) {
      const source = pictureOf(i);
      return source ? el("img", { src: source, alt: label ? describe(i) : "" }) : el("p", { class: "caption" }, "no picture");
    }
    const [width, height] = size;
    const slack = Math.max(width, height) * 0.015;
    const root = svg("svg", { class: "scene", viewBox: `${-slack} ${-slack} ${width + 2 * slack} ${height + 2 * slack}` });
    if (label) {
      root.setAttribute("role", "img");
      root.setAttribute("aria-label", describe(i));
    } else root.setAttribute("aria-hidden", "true");
    root.append(...backdrop(i, size));
    const boxes = boxesOf(i, label).map(([kind, [x1, y1, x2, y2], what]) => {
      const place = { x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.abs(x2 - x1), height: Math.abs(y2 - y1) };
      root.append(svg("rect", { class: "halo", ...place })); // all of them below the boxes
      return svg("rect", { class: `box ${kind}`, ...place }, svg("title", {}, `${what} ${corners([x1, y1, x2, y2])}`));
    });
    root.append(...boxes);
    return root;
  }

  function crop(i, region) {
    const size = sizeOf(i);
    const [x1, y1, x2, y2] = region;
    const root = svg("svg", { class: "scene", viewBox: `${x1} ${y1} ${x2 - x1} ${y2 - y1}`, role: "img", "aria-label": `The crop the model was shown, ${corners(region)}` });
    if (size) root.append(...backdrop(i, size));
    return root;
  }

  // --- what came of a sample

  function verdict(run, i) {
    if (run.status[i] === 0) return ["v-odd", "○ not run"];
    if (run.status[i] === 1) return ["v-odd", "○ unscored"];
    if (run.unparsed[i] && !run.right[i]) return ["v-wrong", "✗ wrong, unparsed"];
    return run.right[i] ? ["v-right", "✓ right"] : ["v-wrong", "✗ wrong"];
  }
  function flip(i) {
    const [a, b] = runs.map((run) => run.right[i]);
    if (!two || a === null || b === null) return "";
    return a === b ? "same" : b ? "fixed" : "broken";
  }
  const FLIPS = { fixed: ["v-right", "▲ fixed"], broken: ["v-wrong", "▼ broken"] };

  // --- filters

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
  const rank = { fixed: 1, broken: 0 };
  const least = (value) => (value === null ? Infinity : value);
  const SORTS = [
    ...(two ? [["flips", "flips first", (a, b) => (rank[flip(a)] ?? 2) - (rank[flip(b)] ?? 2)]] : []),
    ["order", "order of the split", null],
    ["low", "IoU, lowest first", (a, b) => least(last.iou[a]) - least(last.iou[b])],
    ["high", "IoU, highest first", (a, b) => least(last.iou[a] === null ? null : -last.iou[a]) - least(last.iou[b] === null ? null : -last.iou[b])],
    ["score", "answer score, lowest first", (a, b) => least(last.quality[a]) - least(last.quality[b])],
  ];
  let haystack = null;
  function searchable(i) {
    haystack ??= Array.from({ length: n }, (_, k) =>
      [shared.id[k], shared.question[k], shared.answers[k], ...runs.map((run) => run.output[k] || "")].join("\n").toLowerCase());
    return haystack[i];
  }

  function fillSelects() {
    const all = Array.from({ length: n }, (_, i) => i);
    for (const [value, label, test] of RESULTS) {
      const found = all.filter(test).length;
      if (found || !value) $("result").append(el("option", { value }, `${label} (${found.toLocaleString("en")})`));
    }
    const any = (name) => last[name].some((value) => value !== null);
    for (const [value, label] of SORTS) {
      if ((value === "low" || value === "high") && !any("iou")) continue;
      if (value === "score" && !any("quality")) continue;
      $("sort").append(el("option", { value }, label));
    }
  }

  function apply() {
    const words = $("q").value.toLowerCase().trim();
    const task = $("task").value;
    const test = RESULTS.find(([value]) => value === $("result").value)[2];
    const compare = SORTS.find(([value]) => value === $("sort").value)[2];
    const order = [];
    for (let i = 0; i < n; i++) {
      if ((!task || shared.task[i] === task) && test(i) && (!words || searchable(i).includes(words))) order.push(i);
    }
    if (compare) order.sort((a, b) => compare(a, b) || a - b);
    state.order = order;
    show(0);
  }

  // --- the grid

  function card(i, position) {
    const lines = runs.map((run, r) => {
      const [kind, text] = verdict(run, i);
      const iou = run.iou[i] === null ? null : el("span", { class: "iou" }, `IoU ${number(run.iou[i])}`);
      return el("span", { class: `verdict ${kind}` }, el("span", {}, two ? `${"AB"[r]} ${text}` : text), iou);
    });
    const change = FLIPS[flip(i)];
    if (change) lines.unshift(el("span", { class: `verdict ${change[0]}` }, change[1]));
    const said = shared.answers[i] ? `“${last.output[i] || "–"}” · true: ${shared.answers[i]}` : "";
    const words = el("bdi", { class: "ask", dir: "auto" }, shared.question[i] || shared.id[i]);
    const text = el("span", { class: "text" }, ...lines, words, said ? el("bdi", { class: "said", dir: "auto" }, said) : null);
    return el("li", {}, el("a", { class: "card", href: `#s${i}`, "data-position": position }, el("span", { class: "shot" }, scene(i, false)), text));
  }

  function show(page, focus = -1) {
    const pages = Math.max(1, Math.ceil(state.order.length / PAGE));
    state.page = Math.min(Math.max(page, 0), pages - 1);
    const start = state.page * PAGE;
    const here = state.order.slice(start, start + PAGE);
    $("grid").replaceChildren(...here.map((i, k) => card(i, start + k)));
    $("count").textContent = state.order.length === n ? `${n.toLocaleString("en")} samples` : `${state.order.length.toLocaleString("en")} of ${n.toLocaleString("en")} samples`;
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
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
    const target = Math.min(Math.max(Number(current) + step, 0), state.order.length - 1);
    const page = Math.floor(target / PAGE);
    if (page !== state.page) show(page, target);
    else $("grid").querySelector(`[data-position="${target}"]`).focus();
  }

  // --- one sample

  const blocks = new Map();
  function detailOf(i) {
    const block = Math.floor(i / data.block);
    if (!blocks.has(block)) {
      if (blocks.size > 8) blocks.clear();
      blocks.set(block, JSON.parse($(`d${block}`).textContent));
    }
    return blocks.get(block)[i % data.block];
  }

  const pre = (text, kind = "") => el("pre", { class: kind, dir: "auto", tabindex: "0" }, text || "(nothing)");
  function turn(title, step, extra) {
    if (!step) return [];
    const [asked, said] = step.tokens;
    const tokens = said === null ? "" : ` · ${asked ?? "?"} + ${said} tokens`;
    return [
      el("h3", {}, `${title}${tokens}`),
      el("p", { class: "who" }, "prompt"), pre(step.prompt),
      el("p", { class: "who" }, "output"), pre(step.output, "said-by-model"),
      ...(extra ? [el("p", { class: "caption" }, el("bdi", {}, extra))] : []),
    ];
  }

  function parsed(run, detail, i) {
    if (detail.unparsed) return `unparsed: ${detail.unparsed}`;
    if (!run.box[i]) return "";
    return `→ box ${corners(run.box[i])} px${run.iou[i] === null ? "" : ` · IoU with the true box ${number(run.iou[i])}`}`;
  }

  function scoreTable(rows) {
    if (!rows.length) return null;
    const body = rows.map(([name, value, reason]) =>
      el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "num" }, value === null ? "unscored" : number(value, value > 1 ? 1 : 3)), el("td", {}, reason || "")));
    const head = el("thead", {}, el("tr", {}, ...["metric", "score", "reason"].map((t) => el("th", { scope: "col" }, t))));
    return el("table", {}, head, el("tbody", {}, ...body));
  }

  function runPart(run, detail, i, name) {
    const parts = [];
    const [kind, text] = verdict(run, i);
    parts.push(el("h3", {}, name ? `${name} ` : "", el("span", { class: kind }, text)));
    if (!detail) return el("div", {}, ...parts);
    if (detail.error || detail.reason) parts.push(el("p", { class: "notice" }, el("bdi", {}, detail.error || detail.reason)));
    if (run.looked[i]) {
      const frame = el("div", { class: "big" }, crop(i, run.looked[i]));
      parts.push(el("div", { class: "crop" }, frame, el("p", { class: "caption" }, `looked at ${corners(run.looked[i])} px`)));
    }
    parts.push(...turn(detail.reply ? "1 · look" : "single turn", detail.look, parsed(run, detail, i)));
    parts.push(...turn(detail.look ? "2 · answer" : "single turn", detail.reply, ""));
    if (detail.scores.length) parts.push(el("h3", {}, "scores"), scoreTable(detail.scores));
    return el("div", {}, ...parts);
  }

  function summary(i) {
    const rows = runs.map((run, r) => {
      const [kind, text] = verdict(run, i);
      return el("tr", {}, el("th", { scope: "row" }, "AB"[r]), el("td", { class: kind }, text), el("td", {}, el("bdi", {}, run.output[i] || "–")), el("td", { class: "num" }, number(run.iou[i])));
    });
    const head = el("thead", {}, el("tr", {}, ...["run", "verdict", "output", "IoU"].map((t) => el("th", { scope: "col" }, t))));
    const change = FLIPS[flip(i)];
    return el("div", {}, change ? el("p", { class: `verdict ${change[0]}` }, `${change[1]} from A to B`) : "", el("table", { class: "sums" }, head, el("tbody", {}, ...rows)));
  }

  function open(i) {
    if (!(i >= 0 && i < n)) return;
    state.open = i;
    const detail = detailOf(i);
    const at = state.order.indexOf(i);
    $("s-title").textContent = `${at < 0 ? "" : `${(at + 1).toLocaleString("en")} of ${state.order.length.toLocaleString("en")} · `}${shared.task[i]} · ${shared.id[i]}`;
    $("s-back").disabled = at <= 0;
    $("s-on").disabled = at < 0 || at >= state.order.length - 1;
    const k = shared.picture[i];
    const size = sizeOf(i);
    const missing = k === null ? "no picture with this data" : data.errors[k] || (pictureOf(i) ? "" : "picture left out of this file: visrl-eval view RUN --serve");
    const picture = el("div", {},
      el("div", { class: "big" }, scene(i, true)),
      el("p", { class: "caption" }, el("bdi", {}, [size ? `${size[0]} × ${size[1]} px` : "", detail.cluster, missing].filter(Boolean).join(" · "))),
      document.querySelector(".legend").cloneNode(true));
    const truth = el("div", {},
      el("p", { class: "question", dir: "auto" }, detail.question || "question not available"),
      detail.answers.length ? el("p", { dir: "auto" }, `true answer: ${detail.answers.join(" | ")}`) : null,
      shared.box[i] ? el("p", { class: "caption" }, `true box ${corners(shared.box[i])} px`) : null);
    if (two) truth.append(summary(i));
    const parts = runs.map((run, r) => runPart(run, detail.runs[r], i, two ? "AB"[r] : ""));
    if (two) $("s-body").replaceChildren(el("div", { class: "one" }, picture, truth), el("div", { class: "two" }, ...parts));
    else $("s-body").replaceChildren(el("div", { class: "one" }, picture, el("div", {}, truth, ...parts)));
    if (!$("sample").open) $("sample").showModal();
    $("sample").scrollTop = 0;
    $("s-title").focus();
    history.replaceState(null, "", `#s${i}`);
  }
  function beside(step) {
    const at = state.order.indexOf(state.open) + step;
    if (at >= 0 && at < state.order.length) open(state.order[at]);
  }
  function closed() {
    const at = state.order.indexOf(state.open);
    history.replaceState(null, "", location.pathname + location.search);
    if (at >= 0) show(Math.floor(at / PAGE), at);
  }

  // --- keys and clicks

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input, select, textarea, pre") || event.target.closest(".scroll");
    if ($("sample").open) {
      if (event.key === "ArrowLeft" && event.target.tagName !== "PRE") beside(-1);
      else if (event.key === "ArrowRight" && event.target.tagName !== "PRE") beside(1);
      return;
    }
    if (event.key === "Escape" && event.target === $("q")) $("q").blur();
    if (typing) return;
    if (event.key === "/") $("q").focus();
    else if (event.key === "f") $("result").focus();
    else if (event.key.startsWith("Arrow")) {
      if (event.target === document.body && (event.key === "ArrowUp" || event.key === "ArrowDown")) return; // scrolls
      walk(event.key);
    } else return;
    event.preventDefault();
  }

  let waiting = 0;
  $("q").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(apply, 120); });
  $("tools").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["result", "task", "sort"]) $(id).addEventListener("change", apply);
  $("back").addEventListener("click", () => show(state.page - 1));
  $("on").addEventListener("click", () => { show(state.page + 1); $("samples").scrollIntoView(); });
  $("s-back").addEventListener("click", () => beside(-1));
  $("s-on").addEventListener("click", () => beside(1));
  $("s-close").addEventListener("click", () => $("sample").close());
  $("sample").addEventListener("close", closed);
  $("grid").addEventListener("click", (event) => {
    const link = event.target.closest(".card");
    if (!link || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    open(Number(link.getAttribute("href").slice(2)));
  });
  document.addEventListener("keydown", onKey);
  fillSelects();
  apply();
  const asked = /^#s(\d+)$/.exec(location.hash);
  if (asked) open(Number(asked[1]));
})();
