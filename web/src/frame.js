// What all figures have: their size, margins and description.

export function frame(facts, width) {
  return {
    width,
    height: 250,
    marginLeft: 52,
    marginTop: 30,
    marginBottom: 38,
    marginRight: 14,
    style: { fontSize: "12px", overflow: "visible" },
    ariaLabel: facts.title,
    ariaDescription: facts.caption,
  };
}

