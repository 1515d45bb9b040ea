// Draws what a setting did: each run a dot at its value, the mean of each value a bar.

import { dot, line, plot, pointer, tip } from "@observablehq/plot";
import { shown, table } from "./document.js";
import { frame } from "./frame.js";

const BAR = { draw: (context) => (context.moveTo(-11, 0), context.lineTo(11, 0)) };
const LETTER = 6.5; // about the width of one
const LONGEST = 18; // letters of a value on the axis

export function setting(facts, width) {
  const means = facts.values.map((value, i) => ({ value, result: facts.means[i] }));
  return plot({
    ...frame(facts, width),
    ...axis(facts, width),
    y: { label: facts.unit, grid: true, nice: true, ticks: 5, inset: 8 },
    marks: [
      line(facts.runs, { x: "value", y: "result", z: "others", sort: "value", stroke: "var(--muted)", strokeWidth: 0.75 }),
      dot(facts.runs, { x: "value", y: "result", r: 3.5, stroke: "var(--ink)", fill: "var(--page)", fillOpacity: 0.6 }),
      dot(means, { x: "value", y: "result", symbol: BAR, stroke: "var(--chosen)", strokeWidth: 3 }),
      tip(facts.runs, pointer({ x: "value", y: "result", title: titleOf, fontSize: 12, textPadding: 8 })),
    ],
  });
}

// Ticks stand at the values, where their names have room beside each other, else slanting.
function axis({ values, scale, setting }, width) {
  const x = { type: scale, label: setting, labelAnchor: "right", inset: scale === "point" ? 0 : 16 };
  if (scale !== "point") {
    return { x: { ...x, ticks: haveRoom(values, scale, width) ? values : Math.min(6, width / 80), tickFormat: brief } };
  }
  const longest = Math.min(LONGEST, Math.max(...values.map((value) => value.length)));
  const slants = longest * LETTER > (width - 80) / values.length - 8;
  return {
    ...(slants ? { marginBottom: 44 + longest * LETTER * 0.5, marginLeft: 64 } : {}),
    x: { ...x, domain: values, padding: 0.5, tickRotate: slants ? -30 : 0, tickFormat: cut },
  };
}

function haveRoom(values, scale, width) {
  const at = scale === "log" ? values.map(Math.log) : values;
  const ends = at.at(-1) - at[0] || 1;
  return at.slice(1).every((place, i) => ((place - at[i]) / ends) * (width - 100) > 12 + LETTER * brief(values[i + 1]).length);
}

function brief(value) {
  return value && Math.abs(value) < 1e-3 ? Number(value.toPrecision(3)).toExponential() : shown(value);
}

// The end of a name tells more than its beginning.
function cut(name) {
  return name.length > LONGEST ? `…${name.slice(1 - LONGEST)}` : name;
}

function titleOf({ name, result }) {
  return `${name}\n${shown(result)}`;
}

export function tableOfSetting({ setting, unit, runs }) {
  return table(["run", setting, unit], runs.map(({ name, value, result }) => [name, value, result]), "data");
}
