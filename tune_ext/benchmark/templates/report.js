// The page works without this script as far as text and tables go; charts, sorting, the legend
// and the records behind each row need it. Everything from the records is put in as text.
const data = JSON.parse(document.getElementById("data").textContent);
const errors = [];
addEventListener("error", (e) => errors.push(String(e.message)));
addEventListener("unhandledrejection", (e) => errors.push(String(e.reason)));
document.addEventListener("securitypolicyviolation", (e) => errors.push("blocked: " + e.blockedURI));

const hidden = new Set();
const views = new Map(); // element → {view, chart}
const dark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

// Charts

function rowsOfCurves(table, scale) {
  const rows = [];
  for (const [m, shape, x, value, low, high, end] of table) {
    let last = null;
    const name = data.methods[m];
    value.forEach((v, i) => {
      if (v === null) return;
      rows.push({ m: name, x: x[i], v: scale * v, flat: shape === 1,
        lo: low[i] === null ? null : scale * low[i], hi: high[i] === null ? null : scale * high[i] });
      if (end !== null && x[i] <= end) last = v;
    });
    if (end !== null && last !== null) rows.push({ m: name, x: end, v: scale * last, end: true });
  }
  return rows;
}

function specOf(chart) {
  const theme = dark() ? data.themes.dark : data.themes.light;
  const text = JSON.stringify(chart.spec).replace(/"@(\w+)"/g, (_, key) => JSON.stringify(theme[key]));
  const spec = JSON.parse(text);
  spec.datasets = {};
  for (const [name, rows] of Object.entries(chart.data))
    spec.datasets[name] = name === "curves" ? rowsOfCurves(rows, chart.scale) : rows;
  spec.params[0].value = [...hidden];
  spec.width = "container";
  spec.autosize = { type: "fit-x", contains: "padding" };
  return spec;
}

async function draw(element) {
  const chart = data.charts[element.dataset.chart];
  const inner = element.querySelector(".inner");
  inner.style.minWidth = Math.max(chart.least, 0) + "px";
  const old = views.get(element);
  const { view } = await window.vegaEmbed(inner, specOf(chart), {
    actions: false, renderer: "svg", tooltip: { theme: dark() ? "dark" : "light" },
    logLevel: 1,
  });
  if (old) old.finalize();
  views.set(element, view);
}

const drawing = new Map();
function show(element) {
  if (!drawing.has(element))
    drawing.set(element, draw(element).catch((e) => { errors.push(String(e)); throw e; }));
  return drawing.get(element);
}
function redraw() {
  for (const element of [...drawing.keys()]) {
    drawing.delete(element);
    if (element.offsetParent !== null) show(element); else watcher.observe(element);
  }
}
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { watcher.unobserve(entry.target); show(entry.target); }
}, { rootMargin: "600px" });
const plots = [...document.querySelectorAll("[data-chart]")];
plots.forEach((p) => watcher.observe(p));

// Legend: click hides, a pointer above brings to the front

const chips = [...document.querySelectorAll(".chip")];
function apply() {
  for (const chip of chips) chip.setAttribute("aria-pressed", String(!hidden.has(chip.dataset.method)));
  for (const view of views.values()) view.signal("hidden", [...hidden]).runAsync();
  for (const row of document.querySelectorAll("tr[data-method]"))
    row.classList.toggle("faint", hidden.has(row.dataset.method));
}
function focus(name) {
  for (const view of views.values()) view.signal("focus", name).runAsync();
}
for (const chip of chips) {
  const name = chip.dataset.method;
  chip.addEventListener("click", () => { hidden.has(name) ? hidden.delete(name) : hidden.add(name); apply(); });
  chip.addEventListener("pointerenter", () => focus(name));
  chip.addEventListener("pointerleave", () => focus(""));
}
document.getElementById("all")?.addEventListener("click", () => { hidden.clear(); apply(); });
document.getElementById("none")?.addEventListener("click", () => { data.methods.forEach((m) => hidden.add(m)); apply(); });

// Theme

const theme = document.getElementById("theme");
function nameTheme() { theme.textContent = dark() ? "Light" : "Dark"; }
function paint() {
  nameTheme();
  const colours = (dark() ? data.themes.dark : data.themes.light).colours;
  for (const mark of document.querySelectorAll("[data-colour]")) {
    const colour = colours[data.methods.indexOf(mark.dataset.colour)];
    if (mark.tagName === "line") mark.setAttribute("stroke", colour); else mark.style.background = colour;
  }
}
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  paint(); redraw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { paint(); redraw(); });
paint();

// Tabs: one place, several charts

for (const tabs of document.querySelectorAll(".tabs")) {
  const buttons = [...tabs.querySelectorAll("button")];
  for (const button of buttons) button.addEventListener("click", () => {
    for (const b of buttons) {
      b.setAttribute("aria-pressed", String(b === button));
      document.getElementById(b.dataset.for).hidden = b !== button;
    }
    const plot = document.getElementById(button.dataset.for);
    watcher.unobserve(plot); show(plot);
  });
}

// Tables: sort by a column; rows of records stay below the row that they explain

function sort(header) {
  const table = header.closest("table"), body = table.tBodies[0];
  const place = header.cellIndex, up = header.getAttribute("aria-sort") !== "ascending";
  for (const th of table.tHead.rows[0].cells) th.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => {
    const text = row.cells[place].dataset.value;
    return header.dataset.sort === "number" ? (text === "" ? NaN : Number(text)) : text;
  };
  const rows = [...body.rows].filter((r) => !r.classList.contains("cells"));
  const after = new Map(rows.map((r) => [r, r.nextElementSibling?.classList.contains("cells") ? r.nextElementSibling : null]));
  rows.sort((a, b) => {
    const x = value(a), y = value(b);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
  });
  for (const row of rows) { body.append(row); if (after.get(row)) body.append(after.get(row)); }
}
for (const header of document.querySelectorAll("th[data-sort]")) {
  header.tabIndex = 0;
  header.addEventListener("click", () => sort(header));
  header.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); sort(header); } });
}

// The records behind a row

function element(tag, text, cls) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (cls) made.className = cls;
  return made;
}
function tell(value) {
  return value === null ? "none" : typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value);
}
function records(row) {
  const task = data.tasks[row.dataset.task], cells = task.cells[row.dataset.method];
  const made = element("tr", undefined, "cells"), place = made.appendChild(element("td"));
  place.colSpan = row.cells.length;
  const table = place.appendChild(element("div", undefined, "scroll")).appendChild(element("table"));
  const head = table.createTHead().insertRow();
  for (const name of ["seed", "test " + task.error, data.unit, "search, s", "line of records.jsonl", "revision"]) head.append(element("th", name));
  for (const name of ["recommended", "failures"]) head.append(element("th", name, "text"));
  const body = table.createTBody();
  for (const [seed, error, used, seconds, config, line, revision, failures] of cells) {
    const tr = body.insertRow();
    for (const text of [tell(seed), error === null ? "none" : tell(task.scale * error), tell(used), tell(seconds), line ? tell(line) : "unknown"])
      tr.append(element("td", text));
    tr.insertCell().append(element("code", data.revisions[revision]));
    const chosen = config.map((v, i) => (v === null ? "" : task.parameters[i] + " = " + tell(v))).filter(Boolean).join(", ");
    const cell = tr.insertCell(); cell.className = "text"; cell.append(element("code", chosen || "none"));
    tr.append(element("td", failures.join("; ") || "none", "text" + (failures.length ? " bad" : "")));
  }
  return made;
}
for (const button of document.querySelectorAll("button.more")) button.addEventListener("click", () => {
  const row = button.closest("tr"), below = row.nextElementSibling;
  const open = below?.classList.contains("cells");
  if (open) below.remove(); else row.after(records(row));
  button.setAttribute("aria-expanded", String(!open));
});

// Print: everything open, on paper's colours

let before = null;
addEventListener("beforeprint", () => {
  before = { theme: document.documentElement.dataset.theme };
  document.querySelectorAll("details.task").forEach((d) => { d.open = true; });
  document.documentElement.dataset.theme = "light";
  paint(); redraw(); plots.forEach((p) => { if (!p.hidden) show(p); });
});
addEventListener("afterprint", () => {
  if (before?.theme) document.documentElement.dataset.theme = before.theme; else delete document.documentElement.dataset.theme;
  paint(); redraw();
});

// report.html#selftest clicks through the page and writes what it saw, for tests in a browser

const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const marks = (e) => e.querySelectorAll("svg path, svg line, svg text").length;
async function settled() { for (const v of views.values()) await v.runAsync(); }
async function selftest() {
  const seen = {};
  document.querySelectorAll("details").forEach((d) => { d.open = true; });
  const shown = plots.filter((p) => !p.hidden);
  await Promise.all(shown.map(show));
  seen.charts = shown.length;
  seen.empty = shown.filter((p) => marks(p) < 10).map((p) => p.dataset.chart);
  const first = shown.find((p) => "curves" in data.charts[p.dataset.chart].data) ?? shown[0];
  const lines = () => first.querySelectorAll(".mark-line path, .mark-symbol path").length;
  const whole = lines();
  chips[0].click(); await settled();
  seen.hides = lines() < whole && chips[0].getAttribute("aria-pressed") === "false";
  chips[0].click(); await settled();
  seen.shows = lines() === whole;
  focus(data.methods[0]); await settled(); focus("");
  document.querySelector(".tabs button:last-child")?.click();
  await wait(50); await Promise.all(drawing.values());
  seen.tabs = plots.filter((p) => !p.hidden).every((p) => marks(p) >= 10);
  const table = document.querySelector("table.sortable"), names = () => [...table.tBodies[0].rows].map((r) => r.dataset.method ?? r.textContent);
  const order = names(), header = table.querySelector("th[data-sort]");
  header.click(); const ascending = names(); header.click(); const descending = names();
  seen.sorts = ascending.join() !== descending.join() && [...ascending].sort().join() === [...order].sort().join();
  const more = document.querySelector("button.more"); more.click();
  seen.records = document.querySelectorAll("tr.cells tbody tr").length;
  more.click();
  seen.closes = document.querySelectorAll("tr.cells").length === 0;
  const ink = () => getComputedStyle(document.body).color + first.querySelector("svg text")?.getAttribute("fill");
  const day = ink(); theme.click(); await wait(50); await Promise.all(drawing.values());
  seen.theme = ink() !== day;
  theme.click(); await wait(50); await Promise.all(drawing.values());
  seen.back = ink() === day;
  seen.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  seen.requests = performance.getEntriesByType("resource").map((r) => r.name).filter((n) => !n.startsWith("data:"));
  seen.errors = errors;
  return seen;
}
if (location.hash === "#selftest") {
  const told = document.body.appendChild(element("pre", "running")); told.id = "selftest";
  selftest().then((s) => { told.textContent = JSON.stringify(s); }, (e) => { told.textContent = JSON.stringify({ crashed: String(e), errors }); });
}
