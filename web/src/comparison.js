// The page of several runs side by side: its parts, from its facts.

import { commands, element, paragraph, section, table } from "./document.js";
import { grid } from "./figures.js";

export function comparison(facts) {
  const { places, trade_off, settings, curves, unranked } = facts;
  return [
    section("result", "Result", paragraph(facts.verdict, "verdict"), notesOf(facts.notes), places ? tableOfPlaces(places) : null),
    trade_off ? section("trade-off", "Trade-off", grid([trade_off])) : null,
    settings.length ? section("settings", "What each setting did", grid(settings)) : null,
    curves.length ? section("curves", "Held-out pairs over the steps", grid(curves)) : null,
    unranked.length ? section("unranked", "Not ranked", tableOfUnranked(unranked)) : null,
    section("next", "What to do next", commands(facts.commands)),
  ];
}

function tableOfUnranked(unranked) {
  const columns = unranked.some(([, name]) => name) ? [0, 1, 2] : [0, 2];
  const of = (cells) => columns.map((column) => cells[column]);
  return table(of(["folder", "overrides", "state"]), unranked.map(of), "keys");
}

function notesOf(notes) {
  return notes.length ? element("ul", { class: "notes" }, notes.map((note) => element("li", {}, note))) : null;
}

function tableOfPlaces({ head, rows, first, note }) {
  return element("div", { class: "places" }, table(head, rows, "ranks", first), paragraph(note));
}
