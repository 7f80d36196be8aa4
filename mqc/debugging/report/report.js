"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byName = new Map(data.values.map((v) => [v.name, v]));
const costs = new Map(data.costs.map((c) => [c.name, c]));
const SVG = "http://www.w3.org/2000/svg";
const db = (x) => (x === null ? "exact" : x.toFixed(1));
const number = (x) => (Math.abs(x) >= 0.001 && Math.abs(x) < 10000 ? x.toFixed(4) : x.toExponential(2));
const percent = (x) => (x === null ? "" : (100 * x).toFixed(2) + " %");

function make(tag, attributes = {}, text = null) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return element;
}
function draw(parent, tag, attributes, title = null) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (title !== null) {
    const text = document.createElementNS(SVG, "title");
    text.textContent = title;
    element.append(text);
  }
  parent.append(element);
  return element;
}
function label(parent, x, y, text, anchor = "end") {
  draw(parent, "text", { x, y, "text-anchor": anchor, "font-size": 11 }).textContent = text;
}

/* A plot area with a vertical axis; returns the svg and the scale from values to pixels. */
function plot(id, count, step, height, ticks, scale) {
  const left = 46, width = Math.max(left + count * step + 20, 700);
  const svg = draw(document.getElementById(id), "svg", { width, height: height + 30 });
  const y = (value) => 10 + height - scale(value) * height;
  for (const tick of ticks) {
    draw(svg, "line", { x1: left, x2: width, y1: y(tick), y2: y(tick), stroke: "var(--faint)" });
    label(svg, left - 6, y(tick) + 4, String(tick));
  }
  return { svg, y, x: (i) => left + (i + 0.5) * step };
}

function layerMarks(area, height) {
  let last = null;
  data.values.forEach((v, i) => {
    if (v.layer === last || v.layer === null) return;
    last = v.layer;
    draw(area.svg, "line", { x1: area.x(i - 0.5), x2: area.x(i - 0.5), y1: 10, y2: height + 10, stroke: "var(--soft)" });
    label(area.svg, area.x(i), height + 24, String(v.layer), "start");
  });
}

function errorsChart() {
  const shown = data.values.map((v) => [v.local_db, v.sqnr_db]).flat().filter((x) => x !== null);
  const high = Math.min(Math.max(...shown, 20), 90), low = Math.min(...shown, 0);
  const ticks = [];
  for (let t = Math.ceil(low / 10) * 10; t <= high; t += 10) ticks.push(t);
  const scale = (x) => (Math.min(x === null ? high : x, high) - low) / (high - low);
  const area = plot("sqnr", data.values.length, 5, 240, ticks, scale);
  layerMarks(area, 240);
  draw(area.svg, "line", { x1: 46, x2: area.x(data.values.length), y1: area.y(data.threshold), y2: area.y(data.threshold), stroke: "#dc2626", "stroke-dasharray": "4 4" });
  data.values.forEach((v, i) => {
    for (const [figure, colour] of [[v.sqnr_db, "var(--cumulative)"], [v.local_db, "var(--local)"]]) {
      const dot = draw(area.svg, "circle", { cx: area.x(i), cy: area.y(figure), r: 2.4, fill: colour, class: "dot" }, `%${v.name}: local ${db(v.local_db)} dB, cumulative ${db(v.sqnr_db)} dB`);
      dot.addEventListener("click", () => choose(v.name, true));
    }
  });
  const layers = new Map();
  for (const v of data.values) {
    if (v.layer === null) continue;
    const entry = layers.get(v.layer) || { worst: v, last: v };
    if (v.local_db !== null && (entry.worst.local_db === null || v.local_db < entry.worst.local_db)) entry.worst = v;
    entry.last = v;
    layers.set(v.layer, entry);
  }
  const bars = plot("layers", layers.size, 24, 160, ticks, scale);
  [...layers].forEach(([layer, entry], i) => {
    const top = bars.y(entry.worst.local_db), base = bars.y(Math.max(low, 0));
    const bar = draw(bars.svg, "rect", { x: bars.x(i) - 8, y: Math.min(top, base), width: 16, height: Math.max(Math.abs(base - top), 1), fill: "var(--local)", opacity: 0.6, class: "dot" }, `layer ${layer}: %${entry.worst.name} ${db(entry.worst.local_db)} dB`);
    bar.addEventListener("click", () => choose(entry.worst.name, true));
    draw(bars.svg, "circle", { cx: bars.x(i), cy: bars.y(entry.last.sqnr_db), r: 3.5, fill: "var(--cumulative)" }, `%${entry.last.name}: cumulative ${db(entry.last.sqnr_db)} dB`);
    label(bars.svg, bars.x(i), 184, String(layer), "middle");
  });
}

/* What a type can hold: [low, high], null for accumulators and floats. */
function holds(v) {
  const found = /<u(\d+):f32, ([^:]+):(-?\d+)>/.exec(v.type);
  if (!found) return null;
  const scale = Number(found[2]), zero = Number(found[3]);
  return [-zero * scale, (2 ** Number(found[1]) - 1 - zero) * scale];
}

function rangesChart() {
  const log = (x) => Math.sign(x) * Math.log10(1 + Math.abs(x) * 10);
  const most = Math.max(...data.values.map((v) => Math.max(Math.abs(log(v.low)), Math.abs(log(v.high)))), 1);
  const ticks = [-10000, -1000, -100, -10, -1, 0, 1, 10, 100, 1000, 10000].filter((t) => Math.abs(log(t)) <= most);
  const area = plot("range", data.values.length, 5, 240, ticks, (x) => (log(x) + most) / (2 * most));
  layerMarks(area, 240);
  data.values.forEach((v, i) => {
    const title = `%${v.name}: ${number(v.low)} to ${number(v.high)}`, held = holds(v);
    const bar = draw(area.svg, "rect", { x: area.x(i) - 1.5, y: area.y(v.high), width: 3, height: Math.max(area.y(v.low) - area.y(v.high), 1), fill: v.bits === 8 ? "#2563eb" : "#0d9488", class: "dot" }, title);
    bar.addEventListener("click", () => choose(v.name, true));
    if (held) draw(area.svg, "rect", { x: area.x(i) - 2.2, y: area.y(held[1]), width: 4.4, height: Math.max(area.y(held[0]) - area.y(held[1]), 1), fill: "none", stroke: "#94a3b8", "stroke-width": 0.6, "pointer-events": "none" });
  });
}

const COLUMNS = [
  ["value", (v) => v.name, (v) => "%" + v.name],
  ["op", (v) => v.op, (v) => v.op],
  ["bits", (v) => v.bits ?? 0, (v) => (v.bits === null ? "" : String(v.bits))],
  ["local dB", (v) => v.local_db ?? 1e9, (v) => db(v.local_db)],
  ["cumul. dB", (v) => v.sqnr_db ?? 1e9, (v) => db(v.sqnr_db)],
  ["cosine", (v) => v.cosine, (v) => v.cosine.toFixed(5)],
  ["max error", (v) => v.max_error, (v) => number(v.max_error)],
  ["clipped", (v) => v.clipped ?? -1, (v) => percent(v.clipped)],
  ["range used", (v) => v.used ?? -1, (v) => percent(v.used)],
  ["KL alone", (v) => v.kl ?? -1, (v) => (v.kl === null ? "" : v.kl.toFixed(6))],
];
let sorted = { column: 3, down: false };
let chosen = null;

function matching() {
  const wanted = document.getElementById("filter").value.trim().toLowerCase();
  const bits = document.getElementById("bits").value;
  return data.values.filter((v) => `${v.name} ${v.op} ${v.loc}`.toLowerCase().includes(wanted) && (bits === "" || String(v.bits) === bits));
}
function fillTable() {
  const rows = matching(), key = COLUMNS[sorted.column][1];
  rows.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (sorted.down ? -1 : 1));
  document.getElementById("count").textContent = `${rows.length} of ${data.values.length} values`;
  document.querySelector("#table tbody").replaceChildren(
    ...rows.map((v) => {
      const row = make("tr", { "data-name": v.name });
      if (v.local_db !== null && v.local_db < data.threshold) row.classList.add("bad");
      if (v.name === chosen) row.classList.add("chosen");
      row.append(...COLUMNS.map(([, , text]) => make("td", {}, text(v))));
      row.addEventListener("click", () => choose(v.name, false));
      return row;
    }),
  );
}
function heads() {
  const row = make("tr");
  COLUMNS.forEach(([name], i) => {
    const head = make("th", {}, name);
    head.addEventListener("click", () => {
      sorted = { column: i, down: sorted.column === i && !sorted.down };
      fillTable();
    });
    row.append(head);
  });
  document.querySelector("#table thead").append(row);
  for (const bits of [...new Set(data.values.map((v) => v.bits))].filter((b) => b !== null).sort((a, b) => a - b))
    document.getElementById("bits").append(make("option", { value: bits }, `${bits} bits`));
}

/* Show a value: its figures, and its histogram in the reference and in the test. */
function choose(name, scroll) {
  chosen = name;
  const v = byName.get(name), cost = costs.get(name), counts = data.histograms[name];
  const detail = document.getElementById("detail");
  detail.replaceChildren(make("h3", {}, "%" + name));
  const facts = make("table", { class: "facts" });
  const rows = [["op", v.op], ["type", v.type], ["source", v.loc], ["local, cumulative", `${db(v.local_db)} dB, ${db(v.sqnr_db)} dB`], ["reference range", `${number(v.low)} to ${number(v.high)}`], ["clipped, used", `${percent(v.clipped)}, ${percent(v.used)}`]];
  if (v.kl !== null) rows.push(["KL alone", v.kl.toFixed(6)]);
  if (cost && cost.kernel) rows.push(["kernel", cost.kernel]);
  const rule = data.plan.precision.find((r) => r.startsWith(`%${name}=`));
  if (rule) rows.push(["in the plan", rule]);
  for (const [key, text] of rows) {
    const row = make("tr");
    row.append(make("td", {}, key), make("td", {}, text));
    facts.append(row);
  }
  detail.append(facts);
  if (counts) {
    const svg = draw(detail, "svg", { width: 370, height: 170, class: "histogram" });
    const most = Math.log1p(Math.max(...counts.before, ...counts.after)), width = 360 / counts.before.length;
    for (const [bars, colour] of [[counts.before, "#2563eb"], [counts.after, "#d97706"]])
      bars.forEach((n, i) => {
        const height = (140 * Math.log1p(n)) / most;
        draw(svg, "rect", { x: 5 + i * width, y: 145 - height, width, height, fill: colour, opacity: 0.5 }, String(n));
      });
    label(svg, 5, 162, number(counts.low), "start");
    label(svg, 365, 162, number(counts.high));
    detail.append(make("p", {}, "Count per bin (log): reference blue, test orange."));
  }
  fillTable();
  if (scroll) document.getElementById("values").scrollIntoView();
}

function tables() {
  const facts = document.querySelector("#summary table");
  for (const [key, value] of Object.entries(data.summary)) {
    const row = make("tr");
    row.append(make("td", {}, key), make("td", {}, String(value)));
    facts.append(row);
  }
  const plan = document.getElementById("plan"), any = data.plan.precision.length + data.plan.keep8.length;
  plan.querySelector("p").textContent = any
    ? `This recipe addresses ${percent(data.plan.mended)} of the divergence that single ops cause.` : "Nothing that precision would mend was found.";
  if (data.plan.beyond.length) plan.querySelector("p").textContent += ` No precision mends: ${data.plan.beyond.map((n) => "%" + n).join(", ")}.`;
  plan.querySelector("pre").textContent = data.plan.recipe;
  const head = make("tr");
  head.append(...["value", "op", "kernel", "MACs", "weight bytes"].map((t) => make("th", {}, t)));
  document.querySelector("#cost thead").append(head);
  const costly = [...data.costs].sort((a, b) => b.macs - a.macs || b.bytes - a.bytes);
  document.querySelector("#cost tbody").append(
    ...costly.map((c) => {
      const row = make("tr");
      row.append(...["%" + c.name, c.op, c.kernel, c.macs.toLocaleString(), c.bytes.toLocaleString()].map((t) => make("td", {}, t)));
      return row;
    }),
  );
  for (const p of data.passes) {
    const entry = make("details"), total = p.added + p.removed + p.changed;
    entry.append(make("summary", {}, `${p.name}: ${p.added} added, ${p.removed} removed, ${p.changed} changed`));
    for (const c of p.changes) {
      const lines = [`${{ added: "+", removed: "-", changed: "~" }[c.kind]} %${c.value}  ${c.op}`];
      for (const [field, before, after] of c.fields) lines.push(`    ${field}: ${before || "(none)"} -> ${after || "(none)"}`);
      entry.append(make("div", { class: "change" }, lines.join("\n")));
    }
    if (total > p.changes.length) entry.append(make("p", {}, `… and ${total - p.changes.length} more (mqc ir diff shows all)`));
    document.getElementById("passes").append(entry);
  }
}
function tokens() {
  const all = data.windows.flatMap((window) => window.map(([text, kl], position) => ({ text, kl, position })));
  const most = Math.max(...all.map((t) => t.kl), 1e-12), place = document.querySelector("#tokens .tokens");
  for (const window of data.windows) {
    const text = make("p");
    for (const [token, kl] of window) {
      const span = make("span", { title: `${kl.toFixed(4)} nats` }, token);
      span.style.background = `rgb(217 119 6 / ${(0.9 * kl) / most})`;
      text.append(span);
    }
    place.append(text);
  }
  document.querySelector("#worst tbody").append(
    ...all.sort((a, b) => b.kl - a.kl).slice(0, 10).map((t) => {
      const row = make("tr");
      row.append(...[JSON.stringify(t.text), String(t.position), t.kl.toFixed(4)].map((text) => make("td", {}, text)));
      return row;
    }),
  );
}
function showLayer() {
  const wanted = document.getElementById("layer").value;
  for (const drawing of document.querySelectorAll(".drawing")) drawing.hidden = drawing.dataset.layer !== wanted;
}

errorsChart();
rangesChart();
heads();
fillTable();
tables();
tokens();
showLayer();
document.getElementById("filter").addEventListener("input", fillTable);
document.getElementById("bits").addEventListener("change", fillTable);
document.getElementById("layer").addEventListener("change", showLayer);
