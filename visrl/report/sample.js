// One sample, as it happened: what the model saw, what it was asked and said, the box, the crop, the answer, the scores.
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
const at = ([width, height]) => `${width} × ${height} px`;

function turn(title, step, extra) {
  if (!step) return [];
  const [asked, said] = step.tokens;
  const facts = [said === null ? "" : `${asked ?? "?"} + ${said} tokens`, step.ended && step.ended !== "stop" ? `ended: ${step.ended}` : ""];
  return [
    el("li", {},
      el("h3", {}, [title, ...facts].filter(Boolean).join(" · ")),
      el("p", { class: "who" }, "prompt"), pre(step.prompt),
      el("p", { class: "who" }, "output"), pre(step.output, "said-by-model"),
      extra),
  ];
}

// What came of the box turn: the box with its overlap, or why there is none.
function parsed(run, i) {
  if (run.unparsed[i]) return el("p", { class: "notice" }, el("bdi", {}, `unparsed: ${run.unparsed[i]}`));
  if (!run.box[i]) return null;
  const overlap = run.iou[i] === null ? "" : ` · IoU with the true box ${number(run.iou[i])}`;
  return el("p", { class: "caption" }, `→ box ${corners(run.box[i])} px${overlap}`);
}

// The whole picture at the model's resolution, where that is known.
function saw(i, detail) {
  const seen = (detail.look || detail.reply)?.seen?.[0];
  if (!seen || !pictureOf(i)) return [];
  const label = `The picture as the model saw it, ${at(seen)}`;
  return [el("li", { class: "crop" }, el("h3", {}, "What the model saw"), el("div", { class: "big seen" }, seenBy(i, null, seen, detail.padded, label)), el("p", { class: "caption" }, `the picture at ${at(seen)}, the resolution of the model`))];
}

function looked(run, detail, i) {
  const region = run.looked[i];
  if (!region) return [];
  const seen = detail.reply?.seen?.[1];
  const small = seen && pictureOf(i);
  const shown = small ? seenBy(i, region, seen, detail.padded, `The crop the model was shown, ${corners(region)}`) : crop(i, region);
  const words = `looked at ${corners(region)} px${small ? `, seen at ${at(seen)}` : ""}`;
  return [el("li", { class: "crop" }, el("h3", {}, "The crop"), el("div", { class: small ? "big seen" : "big" }, shown), el("p", { class: "caption" }, words))];
}

function scoreTable(rows) {
  if (!rows.length) return null;
  const body = rows.map(([name, value, reason]) =>
    el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "num" }, value === null ? "unscored" : number(value, value > 1 ? 1 : 3)), el("td", {}, reason || "")));
  const head = el("thead", {}, el("tr", {}, ...["metric", "score", "reason"].map((t) => el("th", { scope: "col" }, t))));
  return el("table", {}, head, el("tbody", {}, ...body));
}

function runPart(run, detail, i, name) {
  const [kind, text] = verdict(run, i);
  const head = el("h3", { class: "came" }, name ? `${name} ` : "", el("span", { class: kind }, text), run.output[i] ? el("bdi", {}, ` · “${run.output[i]}”`) : null);
  if (!detail) return el("div", {}, head);
  const trouble = detail.error || detail.reason;
  return el("div", {}, head,
    trouble ? el("p", { class: "notice" }, el("bdi", {}, trouble)) : null,
    detail.looks ? el("ol", { class: "story" }, ...path(i, detail)) : el("ol", { class: "story" },
      ...saw(i, detail),
      ...turn(detail.reply ? "1 · look" : "single turn", detail.look, parsed(run, i)),
      ...looked(run, detail, i),
      ...turn(detail.look ? "2 · answer" : "single turn", detail.reply, null)),
    detail.scores.length ? el("h3", {}, "Scores") : null, scoreTable(detail.scores));
}

// The other questions about the same picture, each a button that opens it.
function others(i) {
  const same = (k) => k !== i && (shared.picture[i] === null ? false : shared.picture[k] === shared.picture[i]);
  const found = Array.from({ length: n }, (_, k) => k).filter(same);
  if (!found.length) return null;
  const list = found.slice(0, 12).map((k) => {
    const [kind, text] = verdict(last, k);
    const button = el("button", { type: "button", class: "quiet", "data-open": k }, el("bdi", {}, shared.question[k] || shared.id[k]));
    return el("li", {}, el("span", { class: kind }, text.slice(0, 1)), " ", button);
  });
  const more = found.length > 12 ? [el("li", {}, `and ${found.length - 12} more`)] : [];
  return el("div", { class: "others" }, el("h3", {}, "Other questions about this picture"), el("ul", {}, ...list, ...more));
}

function pictureSide(i, detail) {
  const k = shared.picture[i];
  const size = sizeOf(i);
  const missing = k === null ? "no picture with this data" : data.errors[k] || (pictureOf(i) ? "" : "picture left out of this file: visrl-eval view RUN --serve");
  const changed = FLIPS[flip(i)];
  return el("div", {},
    el("p", { class: "question", dir: "auto" }, detail.question || "question not available"),
    detail.answers.length ? el("p", { dir: "auto" }, `true answer: ${detail.answers.join(" | ")}`) : null,
    changed ? el("p", { class: `verdict ${changed[0]}` }, `${changed[1]} from A to B`) : null,
    el("div", { class: "big" }, scene(i, true)),
    el("p", { class: "caption" }, el("bdi", {}, [size ? at(size) : "", shared.box[i] ? `true box ${corners(shared.box[i])} px` : "", detail.cluster, missing].filter(Boolean).join(" · "))),
    document.querySelector(".legend").cloneNode(true),
    others(i));
}

function open(i) {
  if (!(i >= 0 && i < n)) return;
  state.open = i;
  const detail = detailOf(i);
  const place = state.order.indexOf(i);
  $("s-title").textContent = `${place < 0 ? "" : `${many(place + 1)} of ${many(state.order.length)} · `}${shared.task[i]} · ${shared.id[i]}`;
  $("s-back").disabled = place <= 0;
  $("s-on").disabled = place < 0 || place >= state.order.length - 1;
  const parts = runs.map((run, r) => runPart(run, detail.runs[r], i, two ? "AB"[r] : ""));
  $("s-body").replaceChildren(el("div", { class: two ? "three" : "one" }, pictureSide(i, detail), ...parts));
  if (!$("sample").open) $("sample").showModal();
  $("sample").scrollTop = 0;
  $("s-title").focus();
  writeAddress();
}

function beside(step) {
  const place = state.order.indexOf(state.open) + step;
  if (place >= 0 && place < state.order.length) open(state.order[place]);
}

function closed() {
  const place = state.order.indexOf(state.open);
  state.open = -1;
  writeAddress();
  if (place >= 0) show(Math.floor(place / PAGE), place);
}
