"use strict";
// What all parts of the page share: its data, elements, pictures with boxes. Text from models and data files enters the page by
// textContent only.
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("index").textContent);
const { n, shared, runs, groups } = data;
const two = runs.length > 1;
const last = runs[runs.length - 1];
const SVG = "http://www.w3.org/2000/svg";
const embedded = new Set(data.embedded || []);

function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== ""));
  return node;
}
function svg(name, attributes, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const corners = (box) => box.map((x) => Math.round(x)).join(", ");
const many = (count) => count.toLocaleString("en");
const nameOf = (i) => `${shared.task[i]}/${shared.id[i]}`;

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

// A region of the picture at the resolution at which the model saw it; padded: on a square of the mean colour.
function seenBy(i, region, [width, height], padded, label) {
  const canvas = el("canvas", { width, height, role: "img", "aria-label": label });
  const picture = new Image();
  picture.onload = () => {
    const size = sizeOf(i) || [picture.naturalWidth, picture.naturalHeight];
    const [x1, y1, x2, y2] = region || [0, 0, ...size];
    const [sx, sy] = [picture.naturalWidth / size[0], picture.naturalHeight / size[1]];
    const paint = canvas.getContext("2d");
    paint.imageSmoothingQuality = "high";
    paint.fillStyle = "rgb(122 116 104)";
    paint.fillRect(0, 0, width, height);
    const longest = Math.max(x2 - x1, y2 - y1);
    const w = padded ? (width * (x2 - x1)) / longest : width;
    const h = padded ? (height * (y2 - y1)) / longest : height;
    paint.drawImage(picture, x1 * sx, y1 * sy, (x2 - x1) * sx, (y2 - y1) * sy, (width - w) / 2, (height - h) / 2, w, h);
  };
  picture.src = pictureOf(i);
  return canvas;
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
