// Draws how many pairs have which margin, before and after.

import { dot, plot, rectY, ruleX, ruleY, text } from "@observablehq/plot";
import { shown, table } from "./document.js";
import { frame } from "./frame.js";

export function margins(facts, width) {
  const bars = facts.parts.flatMap(({ name, counts }) =>
    counts.map((count, i) => ({ name, count, from: facts.edges[i], to: facts.edges[i + 1] })),
  );
  const means = facts.parts.map(({ name, mean }) => ({ name, ...mean }));
  const most = Math.max(...bars.map(({ count }) => count));
  const side = ({ from }) => (from < 0 ? "var(--rejected)" : "var(--chosen)");
  const between = means.filter(({ low }) => low !== null);
  return plot({
    ...frame(facts, width),
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

export function tableOfMargins({ edges, parts }) {
  const rows = edges.slice(1).map((to, i) => [`${shown(edges[i])} to ${shown(to)}`, ...parts.map(({ counts }) => counts[i])]);
  return table(["margin", ...parts.map(({ name }) => `pairs ${name}`)], rows, "data");
}
