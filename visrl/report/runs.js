"use strict";
// The index of runs: sorting by a column, filtering by words and by task; all of it in the address.
const $ = (id) => document.getElementById(id);
const body = $("table").tBodies[0];
const rows = [...body.rows];
const state = { column: -1, down: false };

function valueOf(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.value === undefined) return cell.textContent.trim().toLowerCase();
  return cell.dataset.value === "" ? null : Number(cell.dataset.value);
}

function compare(a, b) {
  const [x, y] = [valueOf(a, state.column), valueOf(b, state.column)];
  if (x === null || y === null) return (x === null) - (y === null); // without a value last, either way
  const order = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
  return state.down ? -order : order;
}

function apply() {
  const words = $("q").value.toLowerCase().trim().split(/\s+/);
  const order = state.column < 0 ? rows : [...rows].sort((a, b) => compare(a, b) || rows.indexOf(a) - rows.indexOf(b));
  body.append(...order);
  let found = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word)) || ($("task").value !== "" && row.dataset.task !== $("task").value);
    found += !row.hidden;
  }
  $("count").textContent = found === rows.length ? `${found.toLocaleString("en")} results` : `${found.toLocaleString("en")} of ${rows.length.toLocaleString("en")} results`;
  for (const [k, head] of [...$("table").tHead.rows[0].cells].entries()) {
    if (k === state.column) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  const parts = new URLSearchParams();
  if ($("q").value) parts.set("q", $("q").value);
  if ($("task").value) parts.set("task", $("task").value);
  if (state.column >= 0) parts.set("sort", `${state.column}${state.down ? "-down" : ""}`);
  history.replaceState(null, "", parts.size ? `#${parts}` : location.pathname + location.search);
}

$("q").addEventListener("input", apply);
$("task").addEventListener("change", apply);
$("tools").addEventListener("submit", (event) => event.preventDefault());
for (const button of document.querySelectorAll(".sort")) {
  button.addEventListener("click", () => {
    const column = Number(button.dataset.column);
    const numbers = rows.length > 0 && rows[0].cells[column].dataset.value !== undefined;
    state.down = column === state.column ? !state.down : numbers; // numbers: the largest first
    state.column = column;
    apply();
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.matches("input, select")) return;
  $("q").focus();
  event.preventDefault();
});
const asked = new URLSearchParams(location.hash.slice(1));
$("q").value = asked.get("q") ?? "";
$("task").value = asked.get("task") ?? "";
if ($("task").selectedIndex === -1) $("task").value = "";
const sorted = /^(\d)(-down)?$/.exec(asked.get("sort") ?? "");
if (sorted) [state.column, state.down] = [Number(sorted[1]), sorted[2] !== undefined];
apply();
