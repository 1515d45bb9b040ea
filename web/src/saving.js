// Saves a figure as an SVG file that needs nothing else: light colours, no style sheet, the legend above the picture.

import { element, shape } from "./document.js";

const LINE = 18; // height of a line of the legend

export function savingLink(facts, canvas, legend) {
  const link = element("a", { class: "save", download: `${facts.name}.svg`, href: "#" }, "Save as SVG");
  link.setAttribute("aria-label", `Save as SVG: ${facts.title}`);
  link.addEventListener("click", () => {
    link.href = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(saved(canvas.firstElementChild, legend))}`;
  });
  return link;
}

function saved(picture, legend) {
  const width = picture.width.baseVal.value;
  const entries = legend ? linesOf([...legend.children], width) : [];
  const above = entries.length * LINE;
  const height = picture.height.baseVal.value + above;
  const whole = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-family": "sans-serif", "font-size": 12 });
  const inner = picture.cloneNode(true);
  for (const [name, value] of Object.entries({ y: above, color: "var(--ink)", fill: "var(--ink)" })) inner.setAttribute(name, value);
  inner.querySelectorAll("style").forEach((style) => style.remove());
  whole.append(shape("rect", { width, height, fill: "var(--page)" }), ...entries.flat(), inner);
  return withLightColours(new XMLSerializer().serializeToString(whole));
}

// The entries of a legend beside each other, as far as there is room, then on the next line.
function linesOf(entries, width) {
  const lines = [[]];
  let x = 0;
  for (const entry of entries) {
    const wide = entry.getBoundingClientRect().width + 18;
    if (x && x + wide > width) {
      lines.push([]);
      x = 0;
    }
    const y = (lines.length - 1) * LINE;
    const swatch = entry.querySelector("svg").cloneNode(true);
    for (const [name, value] of Object.entries({ x, y: y + 3 })) swatch.setAttribute(name, value);
    const text = shape("text", { x: x + 40, y: y + 13, fill: "var(--ink)" });
    text.textContent = entry.textContent;
    lines.at(-1).push(swatch, text);
    x += wide;
  }
  return lines;
}

// The first rule of the style sheet has the light colours, whatever the page is shown in.
function withLightColours(text) {
  const { style } = document.styleSheets[0].cssRules[0];
  const colour = (name) => (/page|background/.test(name) ? "#ffffff" : style.getPropertyValue(name).trim());
  return text.replace(/var\((--[\w-]+)\)/g, (_, name) => colour(name)).replaceAll("currentColor", colour("--ink"));
}
