// Drives a report in a browser as a reader would, and writes what it saw, as JSON, into an element of id "seen".
"use strict";
const seen = { violations: [], errors: [] };
document.addEventListener("securitypolicyviolation", (event) => seen.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
window.addEventListener("error", (event) => seen.errors.push(String(event.message)));
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const column = (table, index) => [...table.tBodies[0].rows].map((row) => row.cells[index].textContent);

// Every element below, through the shadow roots that bokeh draws in.
function* below(root) {
  for (const element of root.querySelectorAll("*")) {
    yield element;
    if (element.shadowRoot) yield* below(element.shadowRoot);
  }
}

async function hover() {
  const view = [...Object.values(Bokeh.index.roots ?? Bokeh.index)][0];
  const line = view.model.renderers[0].data_source.data;
  const events = [...below(document)].find((element) => element.classList.contains("bk-events"));
  const box = events.getBoundingClientRect();
  const x = box.left + view.frame.x_scale.compute(line.x[1]), y = box.top + view.frame.y_scale.compute(line.y[1]);
  for (const type of ["pointerenter", "pointermove"]) {
    events.dispatchEvent(new PointerEvent(type, { clientX: x, clientY: y, bubbles: true, composed: true, pointerType: "mouse", pointerId: 1, isPrimary: true }));
  }
  await pause(300);
  const tip = [...below(document)].find((element) => element.classList.contains("bk-Tooltip"));
  const shown = tip ? [...below(tip.shadowRoot)].filter((each) => each.tagName === "SPAN") : [];
  seen.hover = { said: shown.map((each) => each.textContent), step: line.step[1], value: line.y[1] };
}

async function drive() {
  for (let tries = 0; tries < 200 && !(window.Bokeh && Bokeh.documents.length); tries += 1) await pause(50);
  await pause(500);
  seen.figures = [...below(document)].filter((element) => element.tagName === "CANVAS" && element.width > 50).length;
  const table = document.querySelector("table.sortable"), recall = table.tHead.rows[0].cells[2].querySelector("button");
  const values = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[2].dataset.value));
  recall.click();
  seen.falling = values();
  recall.click();
  seen.rising = values();
  table.tHead.rows[0].cells[0].querySelector("button").click();
  seen.names = column(table, 0);
  const cell = document.querySelector("button[data-cell]"), dialog = document.querySelector("dialog");
  if (cell) {
    cell.click();
    await pause(300);
    seen.cell = cell.textContent;
    seen.dialog = dialog.open;
    seen.pictures = [...dialog.querySelectorAll("img")].map((image) => image.complete && image.naturalWidth > 0);
    dialog.querySelector("button").click();
    seen.closed = !dialog.open;
  }
  await hover();
  seen.wider = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !/^(data|blob):/.test(name));
  const place = document.createElement("pre");
  place.id = "seen";
  place.textContent = JSON.stringify(seen);
  document.body.append(place);
}
drive().catch((error) => {
  const place = document.createElement("pre");
  place.id = "seen";
  place.textContent = JSON.stringify({ ...seen, failed: `${error} ${error.stack}` });
  document.body.append(place);
});
