// Several looks as a path: the picture with the first box, its crop with the second, and so on to the answer; faulty calls are marked.
const WHOLE = "the picture";

// A part of the picture, with the box that was looked at next, where it lies in there.
function stop(i, region, box, label) {
  const [width, height] = sizeOf(i) || [box ? box[2] : 1, box ? box[3] : 1];
  const [x1, y1, x2, y2] = region || [0, 0, width, height];
  const root = svg("svg", { class: "scene", viewBox: `${x1} ${y1} ${x2 - x1} ${y2 - y1}`, role: "img", "aria-label": label });
  root.append(...backdrop(i, [width, height]));
  if (box) {
    const place = { x: box[0], y: box[1], width: box[2] - box[0], height: box[3] - box[1] };
    root.append(svg("rect", { class: "halo", ...place }), svg("rect", { class: "box k-a", ...place }));
  }
  return root;
}

const within = (box, region) => box[0] >= region[0] && box[1] >= region[1] && box[2] <= region[2] && box[3] <= region[3];

function figure(i, region, box, name) {
  const words = `${name}${region ? ` ${corners(region)} px` : ""}${box ? `, with the next box ${corners(box)} px` : ""}`;
  return el("li", { class: "crop" }, el("div", { class: "big" }, stop(i, region, box, words)), el("p", { class: "caption" }, words));
}

function path(i, detail) {
  const items = [];
  let shown = null;
  let name = WHOLE;
  detail.looks.forEach((look, k) => {
    if (look.box) {
      const inside = shown && within(look.box, shown);
      items.push(figure(i, inside ? shown : null, look.box, inside ? name : WHOLE));
    }
    const mark = look.fault ? el("p", { class: "notice" }, el("bdi", {}, `faulty call: ${look.fault}; the error was returned to the model`)) : null;
    if (look.step) items.push(...turn(`${k + 1} · ${look.fault ? "faulty call" : "look"}`, look.step, mark));
    else items.push(el("li", {}, el("h3", {}, `${k + 1} · look of a control (the model was not asked)`)));
    if (look.region) [shown, name] = [look.region, `crop ${k + 1}`];
  });
  if (shown) items.push(figure(i, shown, null, name));
  return [...items, ...turn(`${detail.looks.length + 1} · answer`, detail.reply, ended(detail.ended))];
}

function ended(why) {
  if (why === "call") return el("p", { class: "notice" }, "faulty call: no look was left, but the model called the tool again instead of answering");
  return why && why !== "answer" ? el("p", { class: "caption" }, `limit reached: ${why}`) : null;
}
