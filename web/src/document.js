// Makes elements. Whatever the page shows of a run becomes a text node: no text of a run is ever read as HTML.

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

export function shape(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const LONG = 24;

// A cell may be a list of lines, the first of which is the largest; the first rows may stand out.
export function table(head, rows, className = "", standsOut = 0) {
  const cell = (value) => {
    const [first, ...below] = Array.isArray(value) ? value : [value];
    const details = below.map((line) => element("span", { class: "detail" }, line));
    return element("td", { ...sideOf(value), ...(first?.length > LONG ? { class: "long" } : {}) }, shown(first), details);
  };
  const row = (cells, i) => element("tr", i < standsOut ? { class: "first" } : {}, cells.map(cell));
  return element(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": head.join(", ") },
    element(
      "table",
      { class: className },
      element("thead", {}, element("tr", {}, head.map((name, i) => element("th", { scope: "col", ...sideOf(rows[0]?.[i]) }, name)))),
      element("tbody", {}, rows.map(row)),
    ),
  );
}

export function section(id, title, ...children) {
  return element("section", { id, "aria-labelledby": `${id}-title` }, element("h2", { id: `${id}-title` }, title), ...children);
}

export function paragraph(text, className = "note") {
  return text ? element("p", { class: className }, text) : null;
}

export function commands(pairs) {
  const made = pairs.flatMap(([what, command]) => [
    element("dt", {}, what),
    element("dd", {}, element("pre", { class: "command", tabindex: "0" }, command)),
  ]);
  return element("dl", { class: "commands" }, made);
}

// Long tables are made when somebody opens them.
export function folded(summary, content) {
  const details = element("details", {}, element("summary", {}, summary));
  details.addEventListener("toggle", () => details.open && details.childElementCount === 1 && details.append(content()));
  return details;
}

export function shown(value) {
  if (value === null || value === undefined) return "";
  return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(6))) : String(value);
}

// Numbers stand on the right, below their headings.
function sideOf(cell) {
  return isNumber(Array.isArray(cell) ? cell[0] : cell) ? { class: "number" } : {};
}

function isNumber(value) {
  return typeof value === "number" || /^(< )?[-+]?\d+(\.\d+)?(e[-+]\d+)?=?( ±\S+)?$|^\[.*\d\]$/.test(String(value));
}
