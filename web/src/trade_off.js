// Draws accuracy against nll: a mark for each recipe with its intervals both ways, and the Pareto front.

import { dot, line, plot, pointer, ruleX, ruleY, tip } from "@observablehq/plot";
import { shown, table } from "./document.js";
import { frame } from "./frame.js";
import { labels } from "./labels.js";

const FAR = 2; // in widths of what the recipes need: further away, the model before training would press them together
const AT_THE_EDGE = 0.2; // how much a model that is far away widens an axis, in widths of what the recipes need

export function tradeOff(facts, width) {
  const recipes = facts.recipes.map(flat);
  const [nll, accuracy] = ["nll", "accuracy"].map((metric) => range(recipes, facts.before && flat(facts.before), metric));
  const before = facts.before ? [within(flat(facts.before), nll, accuracy)] : [];
  const all = [...recipes, ...before];
  const front = recipes.filter(({ isOnFront }) => isOnFront).sort((a, b) => a.nll - b.nll);
  const ink = { stroke: "var(--ink)" };
  return plot({
    ...frame(facts, width),
    height: Math.round(Math.min(460, Math.max(320, width * 0.55))),
    x: { label: "nll of chosen, nats a token", labelAnchor: "right", domain: nll, inset: 14, ticks: Math.min(8, width / 70) },
    y: { label: "accuracy, share of pairs", grid: true, domain: accuracy, inset: 14, ticks: 6 },
    marks: [
      line(front, { x: "nll", y: "accuracy", curve: "step-after", stroke: "var(--chosen)", strokeWidth: 1.5, strokeDasharray: "5 3" }),
      ruleX(all.filter(has("accuracy")), { x: "nll", y1: "accuracyLow", y2: "accuracyHigh", stroke: "var(--muted)" }),
      ruleY(all.filter(has("nll")), { y: "accuracy", x1: "nllLow", x2: "nllHigh", stroke: "var(--muted)" }),
      dot(recipes, {
        x: "nll", y: "accuracy", r: 5, strokeWidth: 1.5, ...ink,
        symbol: ({ isOnFront }) => (isOnFront ? "diamond" : "circle"), fill: ({ isOnFront }) => (isOnFront ? "var(--ink)" : "var(--page)"),
      }),
      dot(before, { x: "nll", y: "accuracy", r: 5, symbol: "times", strokeWidth: 2, ...ink }),
      labels(all, front),
      tip(all, pointer({ x: "nll", y: "accuracy", title: titleOf, fontSize: 12, textPadding: 8 })),
    ],
    symbol: { domain: ["circle", "diamond"], range: ["circle", "diamond"] },
    color: { type: "identity" },
  });
}

function flat(mark) {
  const { label, name, rank, accuracy, nll } = mark;
  return {
    label, name, rank, isOnFront: mark.is_on_front,
    accuracy: accuracy.value, accuracyLow: accuracy.low, accuracyHigh: accuracy.high,
    nll: nll.value, nllLow: nll.low, nllHigh: nll.high, mark,
  };
}

function has(metric) {
  return (recipe) => recipe[`${metric}Low`] !== null;
}

// What the recipes need, with their intervals, and the model before training, unless it is far away.
function range(recipes, before, metric) {
  const endsOf = (mark) => [mark[metric], mark[`${metric}Low`], mark[`${metric}High`]].filter((end) => end !== null);
  const ends = recipes.flatMap(endsOf);
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  if (!before) return [low, high];
  const room = Math.max(high - low, 0.02);
  const isFar = recipes.length > 1 && (before[metric] < low - FAR * room || before[metric] > high + FAR * room);
  const reach = isFar ? AT_THE_EDGE * room : Infinity;
  const further = endsOf(before).map((end) => clamped(end, [low - reach, high + reach]));
  return [Math.min(low, ...further), Math.max(high, ...further)];
}

// A model that is far away stands at the edge, and its label says where it is.
function within(before, nll, accuracy) {
  const at = { ...before, nll: clamped(before.nll, nll), accuracy: clamped(before.accuracy, accuracy) };
  if (at.nll === before.nll && at.accuracy === before.accuracy) return before;
  const where = `nll ${before.nll.toPrecision(3)}, accuracy ${before.accuracy.toFixed(2)}`;
  return { ...at, nllLow: null, accuracyLow: null, label: `${before.label}, off the scale: ${where}` };
}

function clamped(value, [low, high]) {
  return Math.min(Math.max(value, low), high);
}

function interval({ low, high }) {
  return low === null ? "" : `[${shown(low)}, ${shown(high)}]`;
}

function titleOf({ name, rank, mark: { accuracy, nll } }) {
  const of = ({ value, ...ends }) => `${shown(value)} ${interval(ends)}`;
  return `${rank ? `rank ${rank}: ` : ""}${name}\naccuracy ${of(accuracy)}\nnll ${of(nll)}`;
}

export function tableOfTradeOff({ recipes, before }) {
  const rows = [...recipes, ...(before ? [before] : [])].map(({ rank, label, name, accuracy, nll, is_on_front }) => [
    rank, label, name, accuracy.value, interval(accuracy), nll.value, interval(nll), is_on_front ? "◆" : "",
  ]);
  return table(["rank", "label", "recipe", "accuracy", "95 % interval", "nll", "95 % interval", "front"], rows, "data");
}
