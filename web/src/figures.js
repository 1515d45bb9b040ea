// Draws the figures: lines over the steps with their intervals, and margins before and after.

import { areaY, dot, line, plot, pointerX, rectY, ruleX, ruleY, text, tip } from "@observablehq/plot";
import { element, folded, shown, table } from "./document.js";

// Told apart without colour too: by dash, symbol and width.
const STYLES = {
  training: { stroke: "var(--training)", strokeWidth: 1.25, dash: null, symbol: null },
  held_out: { stroke: "var(--ink)", strokeWidth: 2, dash: null, symbol: "circle" },
  chosen: { stroke: "var(--chosen)", strokeWidth: 2, dash: null, symbol: "circle" },
  rejected: { stroke: "var(--rejected)", strokeWidth: 2, dash: "7 4", symbol: "square" },
  ruler: { stroke: "var(--muted)", strokeWidth: 2, dash: "2 4", symbol: null },
};
const MOST_DOTS = 40; // of a curve; more would hide it
const HEIGHT = 250;

export function figure(facts) {
  const draw = facts.edges ? margins : lines;
  const canvas = element("div", { class: "canvas" });
  const isTold = facts.series?.length > 1;
  const legend = element("p", { class: "legend" }, isTold ? facts.series.map(legendOf) : null);
  const made = element(
    "figure",
    { id: `figure-${facts.name}`, class: facts.edges ? "wide" : "half" },
    element("h3", {}, facts.title),
    isTold ? legend : null,
    canvas,
    element("figcaption", {}, facts.caption),
    folded("Data of this figure", () => (facts.edges ? tableOfMargins(facts) : tableOfLines(facts))),
  );
  waiting.push(() => keepDrawn(canvas, (width) => draw(facts, width)));
  return made;
}

const waiting = [];

// Draws all figures; called when they stand in the document and so have a width.
export function drawFigures() {
  for (const keepDrawn of waiting.splice(0)) keepDrawn();
}

// Draws at once, so that a page that is printed as soon as it is there has its figures, and again at another width. That
// in the next frame: inside of the observer's call, a change of height would be observed again, with a complaint.
function keepDrawn(canvas, draw) {
  let drawn = 0;
  const redraw = () => {
    const width = Math.floor(canvas.clientWidth);
    if (width === drawn || width === 0) return;
    drawn = width;
    const picture = draw(width);
    picture.setAttribute("role", "img");
    canvas.replaceChildren(picture);
  };
  redraw();
  new ResizeObserver(() => requestAnimationFrame(redraw)).observe(canvas);
}

function base(facts, width) {
  return {
    width,
    height: HEIGHT,
    marginLeft: 52,
    marginTop: 30,
    marginBottom: 38,
    marginRight: 14,
    style: { fontSize: "12px", overflow: "visible" },
    ariaLabel: facts.title,
    ariaDescription: facts.caption,
  };
}

function lines(facts, width) {
  const points = facts.series.flatMap(pointsOf);
  const steps = points.map(({ step }) => step);
  return plot({
    ...base(facts, width),
    x: { label: "step", labelAnchor: "right", ticks: Math.min(6, width / 70, Math.max(...steps)), tickFormat: "d" },
    y: { label: facts.unit, grid: true, nice: !facts.domain, domain: facts.domain ?? undefined, ticks: 5, ...tiny(points) },
    marks: [
      ...(facts.level === null ? [] : [ruleY([facts.level], { stroke: "var(--muted)", strokeWidth: 1 })]),
      ...facts.series.flatMap(marksOf),
      ruleX(points, pointerX({ x: "step", stroke: "var(--muted)", strokeOpacity: 0.6 })),
      tip(points, pointerX({ x: "step", y: "value", title: titleOf, fontSize: 12, textPadding: 8 })),
    ],
  });
}

// Learning rates are read as 5e-6, not as 0.000005.
function tiny(points) {
  const largest = Math.max(...points.map(({ value }) => Math.abs(value)));
  return largest > 0 && largest < 1e-3 ? { tickFormat: (value) => (value ? Number(value.toPrecision(3)).toExponential() : "0") } : {};
}

function styleOf({ role, step }) {
  const style = STYLES[role];
  return step.length > MOST_DOTS ? { ...style, strokeWidth: Math.min(style.strokeWidth, 1.5), symbol: null } : style;
}

function pointsOf(series) {
  return series.step.map((step, i) => ({
    step,
    value: series.value[i],
    low: series.low?.[i] ?? null,
    high: series.high?.[i] ?? null,
    name: series.name,
  }));
}

function marksOf(series) {
  const points = pointsOf(series);
  const { stroke, strokeWidth, dash, symbol } = styleOf(series);
  const banded = points.filter(({ low, high }) => low !== null && high !== null);
  const marks = [line(points, { x: "step", y: "value", stroke, strokeWidth, strokeDasharray: dash })];
  if (banded.length) {
    marks.unshift(areaY(banded, { x: "step", y1: "low", y2: "high", fill: stroke, fillOpacity: 0.15 }));
  }
  if (symbol || points.length === 1) {
    const look = { symbol: symbol ?? "circle", r: 3, fill: "var(--page)", stroke, strokeWidth: 1.5 };
    marks.push(dot(points, { x: "step", y: "value", ...look }));
  }
  return marks;
}

function titleOf({ name, step, value, low, high }) {
  return `${name}, step ${step}\n${shown(value)}${low === null ? "" : ` [${shown(low)}, ${shown(high)}]`}`;
}

function legendOf(series) {
  const { stroke, strokeWidth, dash, symbol } = styleOf(series);
  const at = "http://www.w3.org/2000/svg";
  const shape = (name, attributes) => {
    const made = document.createElementNS(at, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const svg = shape("svg", { width: 34, height: 12, "aria-hidden": "true" });
  const pen = { stroke, "stroke-width": strokeWidth, fill: "var(--page)" };
  svg.append(shape("line", { x1: 1, x2: 33, y1: 6, y2: 6, ...pen, ...(dash ? { "stroke-dasharray": dash } : {}) }));
  if (symbol === "circle") svg.append(shape("circle", { cx: 17, cy: 6, r: 3, ...pen, "stroke-width": 1.5 }));
  if (symbol === "square") svg.append(shape("rect", { x: 14, y: 3, width: 6, height: 6, ...pen, "stroke-width": 1.5 }));
  return element("span", {}, svg, series.name);
}

function tableOfLines(facts) {
  const columns = facts.series.map((series) => new Map(pointsOf(series).map((point) => [point.step, point])));
  const steps = [...new Set(facts.series.flatMap(({ step }) => step))].sort((a, b) => a - b);
  const head = facts.series.flatMap(({ name, low, band }) => (low ? [name, band] : [name]));
  const cells = (step) =>
    facts.series.flatMap(({ low }, i) => {
      const point = columns[i].get(step);
      const bounds = point && point.low !== null ? `[${shown(point.low)}, ${shown(point.high)}]` : "";
      return low ? [point?.value, bounds] : [point?.value];
    });
  return table(["step", ...head], steps.map((step) => [step, ...cells(step)]), "data");
}

function margins(facts, width) {
  const bars = facts.parts.flatMap(({ name, counts }) =>
    counts.map((count, i) => ({ name, count, from: facts.edges[i], to: facts.edges[i + 1] })),
  );
  const means = facts.parts.map(({ name, mean }) => ({ name, ...mean }));
  const most = Math.max(...bars.map(({ count }) => count));
  const side = ({ from }) => (from < 0 ? "var(--rejected)" : "var(--chosen)");
  const between = means.filter(({ low }) => low !== null);
  return plot({
    ...base(facts, width),
    marginRight: 54,
    height: 300,
    x: { label: facts.unit, labelAnchor: "right", ticks: Math.min(8, width / 70) },
    y: { label: "pairs", grid: true, ticks: 3, domain: [0, most * 1.25] },
    fy: { label: null, domain: facts.parts.map(({ name }) => name), padding: 0.12 },
    marks: [
      rectY(bars.filter(({ count }) => count), {
        fy: "name", x1: "from", x2: "to", y: "count", fill: side, fillOpacity: (bar) => (bar.from < 0 ? 0.45 : 0.85),
        insetLeft: 0.5, insetRight: 0.5, tip: false,
      }),
      ruleX([0], { stroke: "var(--ink)", strokeWidth: 1.25 }),
      ruleY([0], { stroke: "var(--muted)" }),
      ruleY(between, { fy: "name", y: most * 1.12, x1: "low", x2: "high", stroke: "var(--ink)", strokeWidth: 2 }),
      dot(means, { fy: "name", x: "value", y: most * 1.12, fill: "var(--ink)", r: 3.5 }),
      text(means, {
        fy: "name", x: "value", y: most * 1.12, dy: -11,
        text: ({ value }) => `mean ${value.toFixed(3)}`, stroke: "var(--page)", fill: "var(--ink)", strokeWidth: 5,
      }),
    ],
  });
}

function tableOfMargins({ edges, parts }) {
  const rows = edges.slice(1).map((to, i) => [`${shown(edges[i])} to ${shown(to)}`, ...parts.map(({ counts }) => counts[i])]);
  return table(["margin", ...parts.map(({ name }) => `pairs ${name}`)], rows, "data");
}
