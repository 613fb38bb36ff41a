// Leafs through the items of a task: data of each lies in a script of type application/json beside its viewer.
for (const view of document.querySelectorAll("[data-items]")) {
  const items = JSON.parse(document.getElementById(view.dataset.items).textContent);
  const make = (tag, text, kind) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const bar = make("div", undefined, "bar");
  const [back, next, which, place] = [make("button", "Back"), make("button", "Next"), make("select"), make("span", "", "soft")];
  for (const [value, text] of [["all", "all"], ["wrong", "wrong"], ["right", "right"]]) {
    const option = make("option", text);
    option.value = value;
    which.append(option);
  }
  which.setAttribute("aria-label", "which items");
  bar.append(back, next, which, place);
  const body = make("div", undefined, "item");
  view.append(bar, body);
  let shown = items;
  let at = 0;
  const show = () => {
    body.replaceChildren();
    place.textContent = shown.length ? `${at + 1} of ${shown.length}` : "none";
    back.disabled = at === 0;
    next.disabled = at + 1 >= shown.length;
    const item = shown[at];
    if (!item) return;
    const head = make("div", `question ${item.id} `);
    if (item.correct !== null) head.append(make("span", item.correct ? "right" : "wrong", item.correct ? "right" : "wrong"));
    if (item.metrics) head.append(make("span", ` ${item.metrics}`, "soft"));
    body.append(head);
    if (item.context) body.append(make("pre", item.context));
    if (item.choices.length) {
      const table = make("table");
      const top = make("tr");
      for (const name of ["", "continuation", "log-probability", "share"]) top.append(make("th", name, name === "continuation" ? "text" : ""));
      table.append(top);
      for (const choice of item.choices) {
        const row = make("tr");
        const marks = [choice.gold ? "right" : "", choice.pred ? "taken" : ""].filter(Boolean).join(", ");
        row.append(make("td", marks, choice.gold ? "right" : ""));
        const text = make("td", choice.text, "text");
        text.style.whiteSpace = "pre-wrap";
        row.append(text, make("td", choice.ll), make("td", choice.share));
        table.append(row);
      }
      const wide = make("div", undefined, "wide");
      wide.append(table);
      body.append(wide);
    }
    for (const [name, text] of item.texts) body.append(make("div", name, "soft"), make("pre", text));
  };
  back.onclick = () => { at -= 1; show(); };
  next.onclick = () => { at += 1; show(); };
  which.onchange = () => {
    shown = items.filter((item) => which.value === "all" || item.correct === (which.value === "right"));
    at = 0;
    show();
  };
  show();
}
