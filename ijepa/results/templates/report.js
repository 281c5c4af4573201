"use strict";
// Tables sort by any column; what is empty stays last. Without this script they are merely unsorted.
function key(row, column) {
  const cell = row.cells[column];
  if (!cell) return "";
  const text = (cell.dataset.value ?? cell.textContent).trim();
  const number = Number(text);
  return text === "" || Number.isNaN(number) ? text : number;
}

function compare(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), "en", { numeric: true });
}

function sort(table, head, column) {
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => [key(row, column), row]);
  keyed.sort(([one], [other]) => {
    if (one === "" || other === "") return (one === "") - (other === "");
    return down ? compare(other, one) : compare(one, other);
  });
  body.append(...keyed.map(([, row]) => row));
}

function button(text, pressed, ...classes) {
  const made = document.createElement("button");
  made.type = "button";
  made.append(...text);
  made.classList.add(...classes);
  made.addEventListener("click", () => pressed(made));
  return made;
}

// A table as text: small print in parentheses, without the codes that link to what made a number.
function markdown(table) {
  const line = (cells) => `| ${cells.join(" | ")} |`;
  const text = (cell) => {
    const copy = cell.cloneNode(true);
    for (const code of copy.querySelectorAll("a.code")) code.remove();
    for (const small of copy.querySelectorAll("small")) small.textContent = `(${small.textContent})`;
    return copy.textContent.trim().replace(/\s+/g, " ").replace(/([\\|])/g, "\\$1");
  };
  const heads = [...table.tHead.rows[0].cells];
  const rule = heads.map((head) => (head.classList.contains("n") ? "---:" : "---"));
  const rows = [...table.tBodies[0].rows].map((row) => line([...row.cells].map(text)));
  return [line(heads.map(text)), line(rule), ...rows].join("\n") + "\n";
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page in a frame, or an old browser
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.append(button([...head.childNodes], () => sort(table, head, column)));
  });
  const pressed = async (made) => {
    await copy(markdown(table));
    made.textContent = "Copied";
    setTimeout(() => { made.textContent = "Copy as Markdown"; }, 2000);
  };
  table.caption.prepend(button(["Copy as Markdown"], pressed, "copy"));
}

// The values of a chart under the pointer.
function number(value) {
  return Number.isInteger(value) ? value.toLocaleString("en") : String(value);
}

function point(plot, tip, event) {
  const area = plot.querySelector(".area"), box = area.getBoundingClientRect();
  const { x: [left, right], unit, lines } = JSON.parse(plot.dataset.lines);
  const wanted = left + (right - left) * (event.clientX - box.left) / box.width;
  const nearest = lines.map(([name, points]) => [name, points.reduce(
    (one, other) => (Math.abs(other[0] - wanted) < Math.abs(one[0] - wanted) ? other : one))]);
  const at = (nearest[0][1][0] - left) / (right - left);
  tip.textContent = [`${number(nearest[0][1][0])} ${unit}`,
    ...nearest.map(([name, [, value]]) => `${name} ${number(value)}`)].join("\n");
  tip.style.left = `${100 * at}%`;
  tip.classList.toggle("left", at > 0.5);
  if (!tip.isConnected) area.append(tip);
}

for (const plot of document.querySelectorAll(".plot")) {
  const tip = document.createElement("span");
  tip.className = "tip";
  for (const kind of ["pointermove", "pointerdown"]) {
    plot.addEventListener(kind, (event) => point(plot, tip, event));
  }
  plot.addEventListener("pointerleave", () => tip.remove());
}

// What a link leads to, and what is printed, must not be folded.
function unfold() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const folded = target && target.closest("details");
  if (folded) {
    folded.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", unfold);
unfold();
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
