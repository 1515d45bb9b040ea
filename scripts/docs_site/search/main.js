// Takes the place of the search of MkDocs, whose worker and request a browser refuses to a page that is opened as a file.
// The theme brings the fields, lunr.js the search; pages.py writes search_index.js.
lunr.tokenizer.separator = new RegExp(searchIndex.config.separator, "u");
const titles = new Map(searchIndex.docs.map(({ location, title }) => [location, title]));
const sections = new Map(searchIndex.docs.filter(({ location }) => location.includes("#")).map((doc) => [doc.location, doc]));
const index = lunr(function () {
  this.ref("location");
  this.field("title", { boost: 5 });
  this.field("text");
  sections.forEach((section) => this.add(section));
});

// The sections that hold one of the words, or a word that begins with it; those that hold it whole come first.
function find(words) {
  if (!words.length) return [];
  return index.query((query) => {
    for (const word of words) {
      query.term(word, { boost: 10 });
      query.term(word, { wildcard: lunr.Query.wildcard.TRAILING, usePipeline: false });
    }
  });
}

function entry(location, words) {
  const { title, text } = sections.get(location);
  const page = titles.get(location.split("#")[0]);
  const start = Math.max(0, text.toLowerCase().indexOf(words[0]) - 80);
  const link = document.createElement("a");
  link.href = `${base_url}/${location}`;
  link.textContent = page === title ? title : `${page} › ${title}`;
  const article = document.createElement("article");
  article.appendChild(document.createElement("h5")).appendChild(link);
  article.appendChild(document.createElement("p")).textContent = (start ? "… " : "") + text.slice(start, start + 240);
  return article;
}

document.addEventListener("DOMContentLoaded", () => {
  const field = document.getElementById("mkdocs-search-query");
  const results = document.getElementById("mkdocs-search-results");
  field.form.addEventListener("submit", (event) => event.preventDefault());
  field.addEventListener("input", () => {
    const words = lunr.tokenizer(field.value).map(String);
    const found = find(words).slice(0, 20).map(({ ref }) => entry(ref, words));
    results.replaceChildren(...(found.length || !words.length ? found : [results.dataset.noResultsText]));
  });
});
