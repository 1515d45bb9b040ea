// Bundles src/report.js with what it needs of Observable Plot and d3 into one file, headed by the licences of these.

import { createHash } from "node:crypto";
import { existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const bundle = join(here, "../orpo_cli/reporting/report_page/report.js");

function packagesOf(metafile) {
  const names = Object.keys(metafile.inputs).map((path) => path.match(/.*node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1]);
  return [...new Set(names.filter(Boolean))].sort();
}

function licenceOf(name) {
  const folder = join(here, "node_modules", name);
  const file = readdirSync(folder).find((entry) => /^licen[sc]e/i.test(entry));
  const { version, license, author } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const text = file ? readFileSync(join(folder, file), "utf8") : `${license}, ${author?.name ?? author}`;
  return { name: `${name} ${version}`, text: text.trim().replaceAll("*/", "* /") };
}

// Most packages of d3 share one text, which then stands once below all of their names.
function licences(names) {
  const byText = new Map();
  for (const { name, text } of names.map(licenceOf)) byText.set(text, [...(byText.get(text) ?? []), name]);
  return [...byText].map(([text, of]) => `${of.join(", ")}\n\n${text}`).join("\n\n----\n\n");
}

// tests/reporting/test_report_page.py computes the same, so that a change of the sources without a build is noticed.
function digestOfSources() {
  const sources = readdirSync(join(here, "src")).sort().map((name) => join("src", name));
  const hash = createHash("sha256");
  for (const name of [...sources, "package.json"]) hash.update(readFileSync(join(here, name)));
  return hash.digest("hex");
}

const { outputFiles, metafile } = await build({
  entryPoints: [join(here, "src/report.js")],
  absWorkingDir: here,
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  charset: "ascii",
  legalComments: "none",
  metafile: true,
  write: false,
});
const head = `/* Built by web/build.js from sources ${digestOfSources()}; it contains:\n\n${licences(packagesOf(metafile))}\n*/\n`;
writeFileSync(bundle, head + outputFiles[0].text);
console.log(`${bundle}: ${(head.length + outputFiles[0].text.length) >> 10} KB, ${head.length >> 10} of them licences`);
