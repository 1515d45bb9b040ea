// Draws lines over the steps with their intervals.

import { areaY, dot, line, plot, pointerX, ruleX, ruleY, tip } from "@observablehq/plot";
import { element, shape, shown, table } from "./document.js";
import { frame } from "./frame.js";

// Told apart without colour too: by dash, symbol and width.
const STYLES = {
  training: { stroke: "var(--training)", strokeWidth: 1.25, dash: null, symbol: null },
  held_out: { stroke: "var(--ink)", strokeWidth: 2, dash: null, symbol: "circle" },
  chosen: { stroke: "var(--chosen)", strokeWidth: 2, dash: null, symbol: "circle" },
  rejected: { stroke: "var(--rejected)", strokeWidth: 2, dash: "7 4", symbol: "square" },
  recipe_1: { stroke: "var(--ink)", strokeWidth: 2.25, dash: null, symbol: null },
  recipe_2: { stroke: "var(--chosen)", strokeWidth: 2, dash: "8 4", symbol: null },
  recipe_3: { stroke: "var(--rejected)", strokeWidth: 2, dash: "2 3", symbol: null },
  recipe_4: { stroke: "var(--muted)", strokeWidth: 1.75, dash: "12 3 2 3", symbol: null },
  recipe_5: { stroke: "var(--chosen)", strokeWidth: 1.25, dash: null, symbol: "circle" },
  recipe_6: { stroke: "var(--rejected)", strokeWidth: 1.25, dash: null, symbol: "square" },
  other: { stroke: "var(--training)", strokeWidth: 1, dash: null, symbol: null },
  ruler: { stroke: "var(--muted)", strokeWidth: 2, dash: "2 4", symbol: null },
};
const MOST_DOTS = 40; // of a curve; more would hide it

export function lines(facts, width) {
  const points = facts.series.flatMap(pointsOf);
  const steps = points.map(({ step }) => step);
  return plot({
    ...frame(facts, width),
    x: { label: "step", labelAnchor: "right", ticks: Math.min(6, width / 70, Math.max(...steps)), tickFormat: "d" },
    y: { label: facts.unit, grid: true, nice: !facts.domain, domain: facts.domain ?? undefined, ticks: 5, ...tiny(points) },
    marks: [
      ...(facts.level === null ? [] : [ruleY([facts.level], { stroke: "var(--muted)", strokeWidth: 1 })]),
      ...(facts.series.some(({ group }) => group) ? facts.series.toReversed() : facts.series).flatMap(marksOf), // the first on top
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

// What is called alike has one entry.
export function legend(series) {
  const byName = new Map();
  for (const one of series) {
    const name = one.group ?? one.name;
    if (!byName.has(name)) byName.set(name, entry(name, one));
  }
  const made = [...byName.values()];
  return made.length > 1 ? element("p", { class: "legend" }, made) : null;
}

function entry(name, series) {
  const { stroke, strokeWidth, dash, symbol } = styleOf(series);
  const svg = shape("svg", { width: 34, height: 12, "aria-hidden": "true" });
  const pen = { stroke, "stroke-width": strokeWidth, fill: "var(--page)" };
  svg.append(shape("line", { x1: 1, x2: 33, y1: 6, y2: 6, ...pen, ...(dash ? { "stroke-dasharray": dash } : {}) }));
  if (symbol === "circle") svg.append(shape("circle", { cx: 17, cy: 6, r: 3, ...pen, "stroke-width": 1.5 }));
  if (symbol === "square") svg.append(shape("rect", { x: 14, y: 3, width: 6, height: 6, ...pen, "stroke-width": 1.5 }));
  return element("span", {}, svg, name);
}

export function tableOfLines(facts) {
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

