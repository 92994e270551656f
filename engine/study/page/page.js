"use strict";
// Sorting and filtering of the table, and the charts. The table itself is in the HTML, so that it can be read without this.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const records = read("records");
  const { figures, missing, curves } = read("figures");
  document.documentElement.classList.add("js");

  // The table
  const table = document.getElementById("rows");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const record = (row) => records[Number(row.dataset.row)];

  const compared = (a, b) =>
    typeof a === "number" && typeof b === "number"
      ? a - b
      : String(a).localeCompare(String(b), "en", { numeric: true, sensitivity: "base" });

  const sort = (head) => {
    const key = head.dataset.key;
    const falling = head.getAttribute("aria-sort") === "ascending";
    const sorted = [...rows].sort((first, second) => {
      const [a, b] = [record(first)[key] ?? null, record(second)[key] ?? null];
      if (a === null || b === null) return (a === null) - (b === null); // what is not known comes last
      return falling ? compared(b, a) : compared(a, b);
    });
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    body.append(...sorted);
  };
  for (const head of table.tHead.rows[0].cells) {
    head.querySelector("button").addEventListener("click", () => sort(head));
  }

  const field = document.getElementById("filter");
  const choices = [...document.querySelectorAll("select.choice")];
  const count = document.getElementById("count");
  const filter = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const chosen = choices.every((one) => !one.value || (record(row)[one.dataset.key] ?? "-") === one.value);
      row.hidden = !(chosen && words.every((word) => text.includes(word)));
      if (!row.hidden) shown += 1;
    }
    count.textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
  };
  field.addEventListener("input", filter);
  for (const one of choices) one.addEventListener("change", filter);
  filter();

  // The charts: as wide as their place, with as many columns in the legend as fit
  const actions = { export: true, source: false, compiled: false, editor: false };
  const views = {};
  const drawing = {}; // one after another in each place, so that the last one stays
  const draw = (id, spec) => (drawing[id] = (drawing[id] ?? Promise.resolve()).then(() => embed(id, spec)));
  const embed = async (id, spec) => {
    const place = document.getElementById(id);
    const columns = Math.max(1, Math.floor((place.clientWidth - 60) / spec.usermeta.entry));
    const config = { ...spec.config, legend: { ...spec.config.legend, columns } };
    views[id]?.finalize();
    const options = { mode: "vega-lite", renderer: "svg", actions, tooltip: { theme: "custom" } };
    views[id] = await vegaEmbed(place, { ...spec, config }, options);
  };
  const axis = document.getElementById("axis");
  const drawFigure = () => {
    document.getElementById("missing").textContent = missing[axis.value];
    return draw("chart", figures[axis.value].spec);
  };
  const drawAll = async () => {
    if (axis) await drawFigure();
    for (const [name, spec] of Object.entries(curves)) await draw(`curve-${name}`, spec);
  };
  axis?.addEventListener("change", drawFigure);
  drawAll();

  let waiting;
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (width === window.innerWidth) return;
    width = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 200);
  });

  // Paper has no clicks: everything is unfolded
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("#mistakes details:not([open])")];
    for (const one of folded) one.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const one of folded) one.open = false;
  });
})();
