// Builds the page of a run from its facts, which stand in the page as JSON.

import { element, folded, section, table } from "./document.js";
import { drawFigures, figure } from "./figures.js";

const facts = JSON.parse(document.getElementById("facts").textContent);
const parts = [
  facts.reading.length || facts.tiles.length ? section("result", "Result", tiles(), reading(), numbers()) : null,
  facts.held_out.length ? section("held-out", "Held-out pairs", grid(facts.held_out)) : null,
  facts.samples.length ? section("samples", "Answers", paragraph(facts.samples_note), samples()) : null,
  facts.training.length ? section("training", "Training", paragraph(facts.thinning), grid(facts.training)) : null,
  section("run", "What was run", whatWasRun()),
  section("next", "What to do next", commands()),
].filter(Boolean);
document.querySelector("main").replaceChildren(header(), contents(), ...parts);
drawFigures();

function header() {
  return element(
    "header",
    {},
    element("p", { class: "kind" }, "orpo run"),
    element("h1", {}, facts.title),
    element("p", { class: "state" }, facts.state),
    element("p", { class: "path" }, facts.folder),
  );
}

function contents() {
  const link = (part) => element("a", { href: `#${part.id}` }, part.querySelector("h2").textContent);
  return element("nav", { "aria-label": "Sections" }, parts.map(link));
}

function paragraph(text) {
  return text ? element("p", { class: "note" }, text) : null;
}

function tiles() {
  const arrow = (tile) => (tile.before === null ? [] : [element("span", { class: "before" }, `${tile.before} → `)]);
  const made = facts.tiles.map((tile) =>
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

function reading() {
  const sentence = ({ text, warns }) =>
    element(
      "li",
      { class: warns ? "warns" : "says" },
      element("span", { class: "sign", "aria-hidden": "true" }, warns ? "!" : "–"),
      element("span", {}, warns ? element("span", { class: "unseen" }, "Warning: ") : null, text),
    );
  return facts.reading.length ? element("ul", { class: "reading" }, facts.reading.map(sentence)) : null;
}

function numbers() {
  const { head, rows, note } = facts.numbers ?? { rows: [] };
  if (!rows.length) return null;
  return folded("All numbers of the evaluation", () => element("div", {}, table(head, rows), paragraph(note)));
}

function grid(figures) {
  return element("div", { class: "grid" }, figures.map(figure));
}

function samples() {
  return facts.samples.map(({ prompt, answers }) =>
    element(
      "article",
      { class: "sample" },
      element("h3", { class: "prompt" }, prompt),
      element("div", { class: "answers" }, answers.map(answer)),
    ),
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

function whatWasRun() {
  const rows = facts.what.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
  const { differences, ledger, notes } = facts;
  const changed = differences.length
    ? table(["key", "value", "default"], differences, "keys")
    : element("p", { class: "note" }, "Every key has its default, but for the model and the data.");
  return element(
    "div",
    {},
    element("pre", { class: "formula", tabindex: "0" }, facts.formula),
    element("dl", {}, rows),
    element("h3", {}, "Settings that differ from the defaults"),
    changed,
    ledger.length ? [element("h3", {}, "What became of the rows"), table(["part", "class", "pairs"], ledger)] : null,
    notes.length ? [element("h3", {}, "Notes"), element("ul", {}, notes.map((note) => element("li", {}, note)))] : null,
  );
}

function commands() {
  const made = facts.commands.flatMap(([what, command]) => [
    element("dt", {}, what),
    element("dd", {}, element("pre", { class: "command", tabindex: "0" }, command)),
  ]);
  return element("dl", { class: "commands" }, made);
}
