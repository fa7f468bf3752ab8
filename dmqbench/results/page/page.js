"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const byId = (id) => document.getElementById(id);

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

/* Theme: the page's colours, and plotly's from them. */

const dark = matchMedia("(prefers-color-scheme: dark)");
const printing = matchMedia("print");

function colour(name) {
  return getComputedStyle(root).getPropertyValue(name).trim();
}

function themed(layout, narrow) {
  const ink = colour("--ink"), grid = colour("--grid"), faint = colour("--faint");
  const themedLayout = structuredClone(layout);
  for (const name of Object.keys({ xaxis: 0, yaxis: 0, ...layout }).filter((key) => /^[xy]axis\d?$/.test(key))) {
    themedLayout[name] = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true, ...layout[name] };
  }
  if (narrow && layout.yaxis && layout.yaxis.type === "category") themedLayout.yaxis.showticklabels = false;
  return {
    ...themedLayout,
    font: { color: ink, size: 12, family: getComputedStyle(document.body).fontFamily },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 50, r: 40, t: 14, b: 44 },
    legend: { orientation: "h", y: -0.24 * Math.min(1, 470 / (layout.height || 470)), yanchor: "top", font: { size: 11.5 } },
    hoverlabel: { bgcolor: colour("--panel"), bordercolor: faint, font: { color: ink } },
    hovermode: "closest",
    dragmode: narrow ? false : "zoom",
  };
}

const CONFIG = {
  displaylogo: false,
  responsive: true,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
};
const drawn = new Map();

/** Draw a figure, or keep it until its place is scrolled to. */
function show(place, figure) {
  drawn.set(place, figure);
  const note = place.closest("figure").querySelector(".note");
  if (note) note.textContent = figure.note;
  if (place.dataset.seen) draw(place);
  else seeing.observe(place);
}

function draw(place) {
  const figure = drawn.get(place);
  const narrow = place.clientWidth < 520;
  const traces = narrow ? figure.data.map((trace) => ({ ...trace, colorbar: trace.colorbar && { ...trace.colorbar, thickness: 8 } })) : figure.data;
  Plotly.react(place, traces, themed(figure.layout, narrow), CONFIG);
  if (!place.dataset.clickable) {
    place.dataset.clickable = "yes";
    place.on("plotly_click", (event) => {
      const job = event.points[0] && event.points[0].customdata;
      if (job in data.jobs) choose(job);
    });
  }
}

const seeing = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seeing.unobserve(entry.target);
    entry.target.dataset.seen = "yes";
    draw(entry.target);
  }
}, { rootMargin: "400px" });

function redraw() {
  for (const place of drawn.keys()) if (place.dataset.seen) draw(place);
}

byId("theme").addEventListener("click", () => {
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  root.dataset.theme = isDark ? "light" : "dark";
  redraw();
});
dark.addEventListener("change", redraw);
printing.addEventListener("change", redraw);
addEventListener("beforeprint", () => {
  for (const place of drawn.keys()) place.dataset.seen = "yes";
  redraw();
});

/* Tables: sorting, filtering, details of a number. */

function sortValue(row, column) {
  const cell = row.children[column];
  const text = cell.dataset.sort === undefined ? cell.textContent.trim() : cell.dataset.sort;
  if (text === "") return null;
  const number = text === "inf" ? Infinity : text === "-inf" ? -Infinity : Number(text);
  return Number.isNaN(number) ? text : number;
}

/** Order rows by a column; what has no value comes last in both directions. */
function sortTable(table, column, descending) {
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => ({ row, key: sortValue(row, column) }));
  keyed.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
    const order = typeof a.key === "number" && typeof b.key === "number"
      ? a.key - b.key || 0 : String(a.key).localeCompare(String(b.key));
    return (Number.isNaN(order) ? 0 : order) * (descending ? -1 : 1);
  });
  for (const { row } of keyed) row.classList.remove("group");
  body.append(...keyed.map(({ row }) => row));
}

function setUpSorting(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const first = head.classList.contains("number") ? "descending" : "ascending";
      const next = !head.ariaSort ? first : head.ariaSort === "ascending" ? "descending" : "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", next);
      sortTable(table, column, next === "descending");
    });
  });
}

function setUpFilter(section) {
  const [find, method, bits, count] = ["find", "method", "bits", "count"].map((name) => section.querySelector("." + name));
  const rows = [...section.querySelectorAll("table.results tbody tr")];
  function apply() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const isKept = words.every((word) => text.includes(word)) &&
        (!method.value || row.dataset.method === method.value) && (!bits.value || row.dataset.bits === bits.value);
      row.hidden = !isKept;
      shown += isKept ? 1 : 0;
    }
    const rowsWord = rows.length === 1 ? "row" : "rows";
    count.textContent = `${shown === rows.length ? shown : `${shown} of ${rows.length}`} ${rowsWord}`;
  }
  for (const control of [find, method, bits]) control.addEventListener("input", apply);
  apply();
}

const tip = byId("tip");

function describe(cell) {
  if (cell.dataset.sentence) return [element("span", cell.dataset.sentence)];
  const job = data.jobs[cell.parentElement.dataset.job], metric = cell.dataset.metric;
  const found = job.metrics[metric];
  const title = element("b", `${metric}: ${found ? found.value : "not available"}`);
  if (!found) return [title, element("span", job.unavailable[metric] || "not measured for this job")];
  return [title, element("span", found.lines.join(" · ")), element("code", found.protocol)];
}

function showTip(cell) {
  tip.replaceChildren(...describe(cell));
  tip.hidden = false;
  const box = cell.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left, innerWidth - own.width - 8));
  const below = box.bottom + 6;
  tip.style.left = `${left}px`;
  tip.style.top = `${below + own.height < innerHeight ? below : Math.max(8, box.top - own.height - 6)}px`;
  cell.setAttribute("aria-describedby", "tip");
}

function hideTip() {
  tip.hidden = true;
}

for (const kind of ["mouseover", "focusin"]) {
  document.addEventListener(kind, (event) => {
    const cell = event.target.closest("td[data-metric], td[data-sentence]");
    if (cell) showTip(cell);
    else hideTip();
  });
}
addEventListener("scroll", hideTip, { passive: true });

/** Arrow keys go from cell to cell, so that the numbers' details need no mouse. */
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
  const cell = event.target.closest("table.results tbody tr > *");
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!cell || !step) return;
  const rows = [...cell.closest("tbody").rows].filter((row) => !row.hidden);
  const row = rows[rows.indexOf(cell.parentElement) + step[0]];
  const next = row && row.children[cell.cellIndex + step[1]];
  if (!next) return;
  event.preventDefault();
  if (!next.hasAttribute("tabindex")) next.tabIndex = -1;
  (next.querySelector("button") || next).focus();
});

/* Plots of a table. */

function setUpPlots(section) {
  const figures = data.tables[Number(section.dataset.table)];
  const place = (name) => section.querySelector(`[data-plot=${name}]`);
  const [axis, metric, proxy] = ["axis", "metric", "proxy"].map((name) => section.querySelector("select." + name));
  const tradeOff = () => show(place("tradeOff"), figures.tradeOff[`${axis.value} ${metric.value}`]);
  if (metric.options.length) {
    for (const control of [axis, metric]) control.addEventListener("input", tradeOff);
    tradeOff();
  }
  if (figures.trajectories) show(place("trajectories"), figures.trajectories);
  if (proxy) {
    const scatter = () => show(place("proxies"), figures.proxies[proxy.value]);
    proxy.addEventListener("input", scatter);
    scatter();
  }
}

/* One job. */

const chooser = byId("jobs");
const grid = byId("grid");

function choose(id, scroll = true) {
  chooser.value = id;
  showJob(id);
  if (scroll) byId("job").scrollIntoView({ behavior: "smooth" });
}

function showJob(id) {
  const job = data.jobs[id];
  for (const row of document.querySelectorAll("tr[data-job]")) row.classList.toggle("chosen", row.dataset.job === id);
  byId("job-title").textContent = `One job: ${job.label}`;
  byId("facts").replaceChildren(...job.facts.map((fact) => element("span", fact)));
  byId("problem").textContent = job.problem;
  byId("problem").hidden = !job.problem;
  for (const place of document.querySelectorAll("[data-figure]")) {
    byId(`${place.id}-figure`).hidden = !(place.id in job.figures);
    if (place.id in job.figures) show(place, job.figures[place.id]);
  }
  if (byId("ranges")) showRanges(job);
  byId("metrics").replaceChildren(...metricsOf(job));
  for (const name of ["command", "config", "environment"]) {
    byId(name).textContent = job[name];
    byId(name).parentElement.hidden = !job[name];
  }
  showSamples(job);
}

/** The layer that was chosen stays chosen from job to job, where the next one has it. */
function showRanges(job) {
  const layers = Object.keys(job.ranges), list = byId("ranges-layer"), before = list.value;
  byId("ranges-figure").hidden = !layers.length;
  if (!layers.length) return;
  list.replaceChildren(...layers.map((name) => element("option", name)));
  if (layers.includes(before)) list.value = before;
  show(byId("ranges"), job.ranges[list.value]);
}

if (byId("ranges")) byId("ranges-layer").addEventListener("input", () => showRanges(data.jobs[chooser.value]));

function metricsOf(job) {
  const made = [];
  for (const [name, found] of Object.entries(job.metrics)) {
    const text = element("dd", `${found.value} · ${found.lines.join(" · ")}`);
    text.append(element("code", found.protocol));
    made.push(element("dt", name), text);
  }
  for (const [name, why] of Object.entries(job.unavailable)) made.push(element("dt", name), element("dd", `not available: ${why}`));
  return made;
}

/** One image of a strip, in a window of its own. */
function windowOn(strip, index, scale, className) {
  const made = element("div", undefined, className), image = element("img");
  image.alt = "";
  image.decoding = "async";
  image.src = strip.source;
  image.style.width = `${strip.width * scale}px`;
  image.style.top = `${-index * strip.height * scale}px`;
  made.append(image);
  return made;
}

/** A sample to the right of the image that it was made from. */
function besideInput(pair, input, index, scale) {
  const made = element("div", undefined, "sample"), before = element("div", undefined, pair.className + " input");
  before.setAttribute("role", "img");
  before.setAttribute("aria-label", `what sample ${index} was made from`);
  before.style.width = `${input.width * scale}px`;
  before.style.height = `${input.height * scale}px`;
  before.append(windowOn(input, index, scale, "alone"));
  made.append(before, pair);
  return made;
}

function showSamples(job) {
  const { fp, quantized } = job.samples;
  const ours = data.galleries.strips[quantized], reference = data.galleries.strips[fp];
  const input = data.galleries.strips[job.samples.input];
  const isPaired = Boolean(ours && reference && reference.width === ours.width && reference.height === ours.height);
  const reason = data.galleries.missing[quantized] || data.galleries.missing[fp];
  grid.replaceChildren();
  const beside = input ? "left of each sample: the image that it was made from" : "";
  const notes = [beside, data.galleries.note].filter(Boolean).join("; ");
  byId("grid-note").textContent = ours ? notes : reason || "no images: this job names no samples";
  byId("cut").disabled = byId("heat").disabled = !isPaired;
  if (!ours) return;
  const count = isPaired ? Math.min(ours.count, reference.count) : ours.count;
  const scale = Math.max(1, Math.floor(112 / Math.max(ours.width, ours.height)));
  for (let index = 0; index < count; index += 1) {
    const pair = element("div", undefined, scale > 1 ? "pair small" : "pair");
    pair.setAttribute("role", "img");
    pair.setAttribute("aria-label", `sample ${index}`);
    pair.style.width = `${ours.width * scale}px`;
    pair.style.height = `${ours.height * scale}px`;
    if (isPaired) pair.append(windowOn(reference, index, scale, "reference"));
    pair.append(windowOn(ours, index, scale, isPaired ? "quantized" : "alone"));
    grid.append(input && index < input.count ? besideInput(pair, input, index, scale) : pair);
  }
  moveCut();
  showHeat(ours, reference);
}

function moveCut() {
  grid.style.setProperty("--cut", `${byId("cut").value}%`);
}

const HEAT = [[255, 255, 255], [253, 205, 130], [238, 120, 55], [190, 40, 45], [90, 10, 40]];

function heatColour(value) {
  const place = Math.min(Math.max(value, 0), 1) * (HEAT.length - 1), low = Math.min(Math.floor(place), HEAT.length - 2);
  return HEAT[low].map((level, channel) => level + (place - low) * (HEAT[low + 1][channel] - level));
}

async function pixelsOf(strip) {
  const image = new Image();
  image.src = strip.source;
  await image.decode();
  const canvas = element("canvas");
  canvas.width = strip.width;
  canvas.height = strip.height * strip.count;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
}

/** Grey levels between two strips, pixel by pixel, averaged over the channels. */
function differenceOf(a, b, length) {
  const levels = new Float32Array(length);
  for (let index = 0; index < length; index += 1) {
    for (let channel = 0; channel < 3; channel += 1) {
      levels[index] += Math.abs(a[4 * index + channel] - b[4 * index + channel]) / 3;
    }
  }
  return levels;
}

/** Differences of all shown samples on one scale, which ends where one pixel in 200 lies above it. */
async function showHeat(ours, reference) {
  const wanted = byId("heat").checked && !byId("heat").disabled;
  grid.classList.toggle("heated", wanted);
  byId("cut").disabled = byId("heat").disabled || wanted;
  if (!wanted) return;
  const pairs = [...grid.querySelectorAll(".pair:not(.input)")], area = ours.width * ours.height;
  const [a, b] = await Promise.all([pixelsOf(ours), pixelsOf(reference)]);
  if (!pairs[0].isConnected) return;
  const levels = differenceOf(a, b, area * pairs.length);
  const sorted = levels.slice().sort();
  const scale = sorted[Math.floor(0.995 * (sorted.length - 1))] || sorted[sorted.length - 1];
  pairs.forEach((pair, index) => {
    const own = levels.subarray(index * area, (index + 1) * area);
    pair.append(heatCanvas({ width: ours.width, height: ours.height, levels: own }, scale));
  });
  byId("grid-note").textContent = scale
    ? `white: no difference; darkest: ${scale.toPrecision(3)} or more of 255 grey levels from full precision (scale of this job)`
    : "no difference at all";
}

function heatCanvas({ width, height, levels }, scale) {
  const canvas = element("canvas");
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  levels.forEach((level, index) => image.data.set([...heatColour(scale ? level / scale : 0), 255], 4 * index));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

byId("cut").addEventListener("input", moveCut);
byId("heat").addEventListener("input", () => showSamples(data.jobs[chooser.value]));
chooser.addEventListener("input", () => choose(chooser.value, false));
for (const [id, step] of [["previous", -1], ["next", 1]]) {
  byId(id).addEventListener("click", () => {
    const count = chooser.options.length;
    choose(chooser.options[(chooser.selectedIndex + step + count) % count].value, false);
  });
}
for (const row of document.querySelectorAll("tr[data-job]")) {
  row.addEventListener("click", () => {
    if (!getSelection().toString()) choose(row.dataset.job);
  });
}

for (const section of document.querySelectorAll(".comparable")) {
  setUpSorting(section.querySelector("table.results"));
  setUpFilter(section);
  setUpPlots(section);
}
for (const place of document.querySelectorAll("[data-part]")) show(place, data.parts[place.dataset.part]);
const firstQuantized = [...document.querySelectorAll("tr[data-job]")].find((row) => {
  const { fp, quantized } = data.jobs[row.dataset.job].samples;
  return quantized && quantized !== fp;
});
if (chooser.options.length) choose(firstQuantized ? firstQuantized.dataset.job : chooser.options[0].value, false);
