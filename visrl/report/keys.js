// Keys and clicks, and the start.
function inSample(event) {
  if (event.target.tagName === "PRE" && event.key.startsWith("Arrow")) return;
  if (event.key === "ArrowLeft" || event.key === "k") beside(-1);
  else if (event.key === "ArrowRight" || event.key === "j") beside(1);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  if (event.key === "?" && !event.target.matches("input")) return $("help").showModal();
  if ($("sample").open) return inSample(event);
  if (event.key === "Escape" && event.target === $("q")) $("q").blur();
  if (event.target.matches("input, select, textarea, pre") || event.target.closest(".scroll")) return;
  if (event.key === "/") $("q").focus();
  else if (event.key === "f") $("result").focus();
  else if (event.key === "j" || event.key === "k") walk(event.key);
  else if (event.key.startsWith("Arrow")) {
    if (event.target === document.body && (event.key === "ArrowUp" || event.key === "ArrowDown")) return; // scrolls
    walk(event.key);
  } else return;
  event.preventDefault();
}

function onClick(event) {
  const target = event.target;
  const link = target.closest(".card, .pick, .chip, [data-low], [data-open], #sections a");
  if (!link || event.ctrlKey || event.metaKey) return;
  if (link.matches(".card")) open(Number(link.dataset.i));
  else if (link.matches("[data-open]")) open(Number(link.dataset.open));
  else if (link.matches("#sections a")) {
    // not by the address: it holds the filters
    const section = $(link.getAttribute("href").slice(1));
    section.scrollIntoView();
    section.focus({ preventScroll: true });
  } else showOnly({ task: link.dataset.task, show: link.dataset.show, low: link.dataset.low, high: link.dataset.high });
  event.preventDefault();
}

let waiting = 0;
function soon() {
  clearTimeout(waiting);
  waiting = setTimeout(apply, 120);
}
function slide(event) {
  const [low, high] = [Number($("low").value), Number($("high").value)];
  if (low > high) (event.target === $("low") ? $("high") : $("low")).value = event.target.value;
  soon();
}
$("q").addEventListener("input", soon);
$("low").addEventListener("input", slide);
$("high").addEventListener("input", slide);
$("tools").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["result", "task", "sort"]) $(id).addEventListener("change", apply);
$("reset").addEventListener("click", () => { reset(); apply(); });
$("export").addEventListener("click", downloadIds);
$("back").addEventListener("click", () => show(state.page - 1));
$("on").addEventListener("click", () => { show(state.page + 1); $("samples").scrollIntoView(); });
$("s-back").addEventListener("click", () => beside(-1));
$("s-on").addEventListener("click", () => beside(1));
$("s-close").addEventListener("click", () => $("sample").close());
$("sample").addEventListener("close", closed);
$("ask").addEventListener("click", () => $("help").showModal());
$("help-close").addEventListener("click", () => $("help").close());
document.addEventListener("click", onClick);
document.addEventListener("keydown", onKey);
window.addEventListener("hashchange", readAddress);
fillChoices();
readAddress();
