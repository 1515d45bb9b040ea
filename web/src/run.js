// The page of a run: its parts, from its facts.

import { commands, element, folded, paragraph, section, table } from "./document.js";
import { grid } from "./figures.js";

export function run(facts) {
  const { reading, tiles, numbers, held_out, samples, training } = facts;
  return [
    reading.length || tiles.length ? section("result", "Result", tilesOf(tiles), said(reading), numbersOf(numbers)) : null,
    held_out.length ? section("held-out", "Held-out pairs", grid(held_out)) : null,
    samples.length ? section("samples", "Answers", paragraph(facts.samples_note), samples.map(sample)) : null,
    training.length ? section("training", "Training", paragraph(facts.thinning), grid(training)) : null,
    section("run", "What was run", whatWasRun(facts)),
    section("next", "What to do next", commands(facts.commands)),
  ];
}

function tilesOf(tiles) {
  const arrow = (tile) => (tile.before === null ? [] : [element("span", { class: "before" }, `${tile.before} → `)]);
  const made = tiles.map((tile) =>
    element(
      "div",
      { class: "tile" },
      element("p", { class: "label" }, tile.label),
      element("p", { class: "value" }, arrow(tile), tile.after),
      element("p", { class: "detail" }, tile.detail),
    ),
  );
  return made.length ? element("div", { class: "tiles" }, made) : null;
}

function said(reading) {
  const sentence = ({ text, warns }) =>
    element(
      "li",
      { class: warns ? "warns" : "says" },
      element("span", { class: "sign", "aria-hidden": "true" }, warns ? "!" : "–"),
      element("span", {}, warns ? element("span", { class: "unseen" }, "Warning: ") : null, text),
    );
  return reading.length ? element("ul", { class: "reading" }, reading.map(sentence)) : null;
}

function numbersOf(numbers) {
  const { head, rows, note } = numbers ?? { rows: [] };
  if (!rows.length) return null;
  return folded("All numbers of the evaluation", () => element("div", {}, table(head, rows), paragraph(note)));
}

function sample({ prompt, answers }) {
  return element(
    "article",
    { class: "sample" },
    element("h3", { class: "prompt" }, prompt),
    element("div", { class: "answers" }, answers.map(answer)),
  );
}

function answer({ when, text, note, sampled }) {
  return element(
    "div",
    { class: "answer" },
    element("p", { class: "when" }, when, note ? element("span", { class: "detail" }, ` · ${note}`) : null),
    text ? element("p", { class: "text" }, text) : element("p", { class: "text nothing" }, "(nothing)"),
    sampled === null ? null : folded("drawn as people sample", () => element("p", { class: "text" }, sampled)),
  );
}

function whatWasRun({ what, formula, differences, ledger, notes }) {
  const rows = what.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
  const changed = differences.length
    ? table(["key", "value", "default"], differences, "keys")
    : element("p", { class: "note" }, "Every key has its default, but for the model and the data.");
  return element(
    "div",
    {},
    element("pre", { class: "formula", tabindex: "0" }, formula),
    element("dl", {}, rows),
    element("h3", {}, "Settings that differ from the defaults"),
    changed,
    ledger.length ? [element("h3", {}, "What became of the rows"), table(["part", "class", "pairs"], ledger)] : null,
    notes.length ? [element("h3", {}, "Notes"), element("ul", {}, notes.map((note) => element("li", {}, note)))] : null,
  );
}
