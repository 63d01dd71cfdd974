"use strict";
// Behind the page: tables that sort, cells that open their pictures, figures in the page's colours. Text that came from
// data enters the document by textContent alone.

// Sorting: <table class="sortable">, a button in each heading, data-value where the text is not the value.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const first = heading.dataset.first || "descending";
    const other = first === "descending" ? "ascending" : "descending";
    const order = heading.getAttribute("aria-sort") === first ? other : first;
    headings.forEach((each) => each.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", order);
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const body = table.tBodies[0];
    const sign = order === "ascending" ? 1 : -1;
    const number = (text) => (text === "" ? NaN : Number(text));
    body.append(...[...body.rows].sort((a, b) => {
      const [one, two] = [value(a), value(b)], [x, y] = [number(one), number(two)];
      if (heading.dataset.first === "ascending") return sign * one.localeCompare(two, undefined, { numeric: true });
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // No figure: last, either way.
      return sign * (x - y);
    }));
  }));
}

// The pictures behind a cell of the confusion matrix.
const data = JSON.parse(document.getElementById("data").textContent);
const dialog = document.querySelector("dialog");
function element(name, text, parent) {
  const made = document.createElement(name);
  made.textContent = text;
  parent.append(made);
  return made;
}
function open(key) {
  // Isolated (U+2068, U+2069): a name that is written from right to left leaves the words around it in their order.
  const cell = data.cells[key], [truth, said] = key.split(",").map((index) => `\u2068${data.names[index]}\u2069`);
  dialog.querySelector("h2").textContent = truth === said ? `${truth}, correct` : `${truth}, predicted as ${said}`;
  const all = cell.rows.length === cell.count;
  dialog.querySelector("p").textContent = all
    ? `${cell.count} test images` : `${cell.rows.length} of ${cell.count} test images`;
  const album = dialog.querySelector(".album");
  album.replaceChildren();
  for (const row of cell.rows) {
    const { src, id, confidence } = data.pictures[row];
    const figure = element("figure", "", album);
    const image = element("img", "", figure);
    image.src = src;
    image.alt = image.title = id;
    element("figcaption", `${(100 * confidence).toFixed(1)} %`, figure);
  }
  dialog.showModal();
}
for (const button of document.querySelectorAll("button[data-cell]")) {
  button.addEventListener("click", () => open(button.dataset.cell));
}
if (dialog) {
  dialog.querySelector("button").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}

// bokeh draws on a canvas, which style sheets do not reach: its text and lines get the page's colours from here.
function colour_figures(printing) {
  const style = getComputedStyle(document.documentElement);
  const [ink, soft] = printing ? ["#000", "#444"] : ["--ink", "--soft"].map((name) => style.getPropertyValue(name).trim());
  const set = (model, values) => {
    for (const [name, value] of Object.entries(values)) if (name in model.properties) model[name] = value;
  };
  for (const root of Bokeh.documents.flatMap((each) => each.roots())) {
    for (const model of root.references()) {
      if (model.type === "Title") set(model, { text_color: ink });
      if (model.type.endsWith("Axis")) {
        set(model, { axis_label_text_color: soft, major_label_text_color: soft, axis_line_color: soft, major_tick_line_color: soft });
      }
      if (model.type === "Grid") set(model, { grid_line_color: soft });
    }
  }
}
// A legend's buttons: a click hides a run, pointing at one or reaching it by the keyboard brings it out.
const run_buttons = [...document.querySelectorAll("button[data-run]")];
function each_curve(change) {
  if (window.Bokeh === undefined) return;
  for (const root of Bokeh.documents.flatMap((each) => each.roots())) {
    for (const model of root.references()) {
      if (model.type === "GlyphRenderer" && model.tags.length) change(model, model.tags[0]);
    }
  }
}
const own_alphas = new WeakMap();
function bring_out(run) {
  each_curve((curve, number) => {
    const { glyph } = curve, faded = run !== null && run !== number;
    if (!own_alphas.has(glyph)) own_alphas.set(glyph, [glyph.line_alpha, glyph.fill_alpha]);
    const [line, fill] = own_alphas.get(glyph);
    glyph.line_alpha = faded ? 0.12 : line;
    if ("fill_alpha" in glyph.properties) glyph.fill_alpha = faded ? 0.12 : fill;
  });
}
for (const button of run_buttons) {
  const run = Number(button.dataset.run);
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    each_curve((curve, number) => { if (number === run) curve.visible = shown; });
  });
  for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => bring_out(run));
  for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => bring_out(null));
}
// What is printed is a copy that is as wide as its place on paper: bokeh draws anew only after the print.
function still(view) {
  const place = view.el.closest(".chart");
  if (!place || !view.export) return;
  const { canvas } = view.export("png", true);
  canvas.className = "print";
  canvas.removeAttribute("style");
  place.append(canvas);
}
function when_drawn(tries) {
  if (window.Bokeh === undefined) return;
  if (Bokeh.documents.length === 0) {
    if (tries > 0) setTimeout(() => when_drawn(tries - 1), 50);
    return;
  }
  colour_figures(false);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => colour_figures(false));
  window.addEventListener("beforeprint", () => {
    colour_figures(true);
    for (const view of Object.values(Bokeh.index.roots ?? Bokeh.index)) still(view);
  });
  window.addEventListener("afterprint", () => {
    document.querySelectorAll(".print").forEach((canvas) => canvas.remove());
    colour_figures(false);
  });
}
when_drawn(200);
