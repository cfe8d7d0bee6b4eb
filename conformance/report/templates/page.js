"use strict";
// The page's data: see conformance/report/page.py. What came from a target is set as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const ORDER = ["fail", "pass", "unsupported"]; // a cell shows the worst of its quantities
const SVG = "http://www.w3.org/2000/svg";
let pressed = null;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function number(x) {
  if (x === null) return "∞";
  if (x === 0) return "0";
  return Math.abs(x) >= 1e4 || Math.abs(x) < 1e-2 ? x.toExponential(1).replace("e+", "e") : String(+x.toPrecision(2));
}

// cells[row][column]: the checks of one case and one column
const cells = data.rows.map(() => data.columns.map(() => []));
for (const [row, column, quantity, verdict, error, reason, explanation] of data.checks) {
  cells[row][column].push({ quantity, verdict, error, reason, explanation });
}
const evidence = new Map(data.evidence.map(found => [found.row + "," + found.column, found]));

// The names that reproduce failures, most frequent first, each with the number of failed checks that it has a part in.
const causes = data.causes;

function causesOf(row) {
  return [...new Set(cells[row].flat().filter(check => check.verdict === "fail").map(check => check.explanation || check.reason))];
}

function drawCauses() {
  byId("causes").hidden = !causes.length;
  for (const cause of causes) {
    const button = element("button", { type: "button", className: "plain" }, element("b", { textContent: cause.count }),
      element("span", { textContent: cause.name }), element("span", { className: "expected", textContent: cause.expected }));
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const chosen = button.getAttribute("aria-pressed") === "true";
      for (const each of byId("cause-list").querySelectorAll("button")) each.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(!chosen));
      byId("text").value = chosen ? "" : cause.search;
      byId("verdict").value = chosen ? "" : "fail";
      filter();
    });
    byId("cause-list").append(element("li", {}, button));
  }
}

function verdictOf(checks) {
  return ORDER.find(verdict => checks.some(check => check.verdict === verdict)) || "";
}

function worst(checks) {
  const errors = checks.filter(check => check.verdict !== "unsupported").map(check => check.error);
  return errors.includes(null) ? null : Math.max(0, ...errors);
}

function options(id, values) {
  byId(id).append(...values.map(value => element("option", { value, textContent: value })));
}

function drawHead() {
  const row = element("tr", {}, element("th", { className: "case", scope: "col", textContent: "case" }));
  data.columns.forEach((column, number) => {
    const fails = cells.filter(of => verdictOf(of[number]) === "fail").length;
    const label = element("span", { textContent: column.name + ", " + column.dtype + (fails ? " · " + fails + " fail" : "") });
    const head = element("th", { className: "column", scope: "col", title: label.textContent }, label);
    head.dataset.column = number;
    row.append(head);
  });
  byId("matrix").classList.toggle("few", data.columns.length <= 4); // names fit side by side
  if (causes.length) row.append(element("th", { className: "cause", scope: "col", textContent: "reproduced by" }));
  byId("matrix").tHead.append(row);
}

function drawBody() {
  const body = byId("matrix").tBodies[0];
  let group = null;
  data.rows.forEach((row, number) => {
    if (row.grouping !== group) {
      group = row.grouping;
      const head = element("tr", { className: "group" }, element("th", { textContent: group, scope: "rowgroup" }));
      head.dataset.group = group;
      body.append(head);
    }
    const line = element("tr", {}, element("th", {
      className: "case", scope: "row", textContent: row.feature || row.case, title: row.case + (row.guards ? "\nguards against " + row.guards : ""),
    }));
    line.dataset.row = number;
    data.columns.forEach((_, column) => line.append(cell(number, column)));
    if (causes.length) line.append(element("td", { className: "cause", textContent: causesOf(number).join(" · ") }));
    body.append(line);
  });
}

function cell(row, column) {
  const checks = cells[row][column], verdict = verdictOf(checks);
  const box = element("td");
  box.dataset.column = column;
  if (!verdict) return box;
  const text = verdict === "unsupported" ? "–" : number(worst(checks));
  const button = element("button", { type: "button", className: verdict, textContent: text });
  button.setAttribute("aria-label", nameOf(row, column) + ": " + verdict + " " + text);
  button.addEventListener("click", () => show(row, column, button));
  box.append(button);
  return box;
}

function show(row, column, button) {
  if (pressed) pressed.setAttribute("aria-pressed", "false");
  pressed = button;
  button.setAttribute("aria-pressed", "true");
  const panel = byId("detail"), of = data.rows[row], at = data.columns[column];
  const close = element("button", { className: "plain", type: "button", textContent: "Close" });
  close.addEventListener("click", () => { panel.hidden = true; button.setAttribute("aria-pressed", "false"); button.focus(); });
  const words = element("div", {}, element("p", { className: "quiet", textContent: at.name + ", " + at.dtype }));
  if (of.guards) words.append(element("p", { className: "quiet", textContent: "SPEC " + of.clause + ", guards against " + of.guards }));
  for (const check of cells[row][column]) words.append(...described(check));
  const command = data.commands[row][column];
  if (command) words.append(element("h3", { textContent: "Again" }), ...again(command));
  const beside = element("div", { className: "columns" }, words), found = evidence.get(row + "," + column);
  const named = cells[row][column].find(check => check.explanation);
  if (found) beside.append(element("div", {}, ...pictures(found, at.name, named ? named.explanation : "")));
  panel.replaceChildren(element("header", {}, element("h2", { textContent: of.case }), close), beside);
  panel.hidden = false;
  panel.scrollTop = 0;
  keepVisible(button);
  history.replaceState(null, "", "#" + encodeURIComponent(nameOf(row, column)));
  if (matchMedia("(max-width: 760px)").matches) panel.scrollIntoView({ block: "start" });
}

// The panel takes height from the matrix: the cell stays below the column names and above the edge.
function keepVisible(button) {
  const scroll = byId("scroll"), box = scroll.getBoundingClientRect(), cell = button.getBoundingClientRect();
  const top = box.top + byId("matrix").tHead.offsetHeight;
  if (cell.top < top || cell.bottom > box.bottom) scroll.scrollTop += cell.top - top - 8;
}

function nameOf(row, column) {
  return data.rows[row].case + ", " + data.columns[column].name + ", " + data.columns[column].dtype;
}

// A link to a cell opens it.
function openLinked() {
  const linked = decodeURIComponent(location.hash.slice(1));
  document.querySelectorAll("tr[data-row] td[data-column]").forEach(box => {
    if (linked && box.firstChild && nameOf(box.parentNode.dataset.row, box.dataset.column) === linked) {
      byId("detail").hidden = false; // first, since it takes width from the matrix
      box.firstChild.scrollIntoView({ block: "center", inline: "center" });
      box.firstChild.click();
    }
  });
}

function described(check) {
  const size = check.verdict === "unsupported" ? "" : " error " + number(check.error) + " eps";
  const made = [
    element("h3", { textContent: check.quantity }),
    element("p", {}, element("span", { className: "verdict " + check.verdict, textContent: check.verdict }), size),
  ];
  if (check.reason) made.push(element("p", { textContent: check.reason }));
  if (check.explanation) made.push(element("p", {}, "reproduced by ", element("b", { textContent: check.explanation })));
  return made;
}

function again(command) {
  const copy = element("button", { className: "plain", type: "button", textContent: "Copy" });
  copy.addEventListener("click", () => navigator.clipboard?.writeText(command).then(() => { copy.textContent = "Copied"; }));
  return [element("code", { className: "command", textContent: command }), copy];
}

function pictures(found, name, diagnosis) {
  const difference = found.b.map((line, t) => line.map((x, s) => minus(x, found.a[t][s])));
  const both = Math.max(largest(found.a), largest(found.b));
  return [
    element("h3", { textContent: (diagnosis ? diagnosis + ": " : "") + found.stage + ", " + found.lead }),
    element("div", { className: "maps" },
      heat(found.a, both, "right: the oracle", found.axes), heat(found.b, both, name, found.axes),
      heat(difference, largest(difference), "difference", found.axes)),
  ];
}

function minus(x, y) {
  if (typeof x === "number" && typeof y === "number") return x - y;
  return x === y ? 0 : "NaN";
}

function largest(matrix) {
  return Math.max(1e-300, ...matrix.flat().filter(x => typeof x === "number").map(Math.abs));
}

// A number's size is its opacity, its sign the colour; what is no number (sent as text) has a colour of its own.
function heat(matrix, edge, caption, axes) {
  const svg = document.createElementNS(SVG, "svg");
  const width = matrix[0].length, height = matrix.length;
  svg.setAttribute("viewBox", "-1.6 -1.2 " + (width + 1.8) + " " + (height + 1.4));
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", caption);
  matrix.forEach((line, t) => line.forEach((x, s) => {
    const box = document.createElementNS(SVG, "rect"), title = document.createElementNS(SVG, "title");
    const settings = { x: s, y: t, width: 1.02, height: 1.02, class: typeof x !== "number" ? "nan" : x < 0 ? "less" : "more" };
    for (const [key, value] of Object.entries(settings)) box.setAttribute(key, value);
    if (typeof x === "number") box.setAttribute("fill-opacity", Math.abs(x) / edge);
    title.textContent = axes[0] + " " + t + ", " + axes[1] + " " + s + ": " + (typeof x === "number" ? +x.toPrecision(4) : x);
    box.append(title);
    svg.append(box);
  }));
  svg.append(path("frame", "M0 0H" + width + "V" + height + "H0Z"));
  for (const s of ticks(width)) svg.append(label(s, s + .5, -.2, "middle"));
  for (const t of ticks(height)) svg.append(label(t, -.2, t + .7, "end"));
  svg.append(label(axes[1], width / 2, -.75, "middle"), label(axes[0], -1.1, height / 2 + .2, "middle"));
  const scale = " · full colour: " + number(edge) + (matrix.flat().some(x => typeof x !== "number") ? " · grey: not finite" : "");
  return element("figure", {}, svg, element("figcaption", { textContent: caption + scale }));
}

// At most seven whole numbers from 0 on.
function ticks(size) {
  const step = Math.ceil(size / 7);
  return [...Array(Math.ceil(size / step)).keys()].map(number => number * step);
}

function path(name, d) {
  const made = document.createElementNS(SVG, "path");
  made.setAttribute("class", name);
  made.setAttribute("d", d);
  return made;
}

function label(text, x, y, anchor) {
  const made = document.createElementNS(SVG, "text");
  for (const [key, value] of Object.entries({ x, y, "text-anchor": anchor })) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function filter() {
  const text = byId("text").value.trim().toLowerCase(), verdict = byId("verdict").value;
  const feature = byId("feature").value, target = byId("target").value;
  const columns = data.columns.map(column => !target || column.name === target);
  document.querySelectorAll("[data-column]").forEach(box => { box.hidden = !columns[box.dataset.column]; });
  const groups = new Set();
  let shown = 0;
  document.querySelectorAll("tr[data-row]").forEach(line => {
    const row = data.rows[line.dataset.row], of = cells[line.dataset.row].filter((_, column) => columns[column]);
    const words = [row.case, ...of.flat().flatMap(check => [check.reason, check.explanation])].join("\n").toLowerCase();
    const keep = (!feature || row.feature === feature) && (!text || words.includes(text)) && of.some(checks => checks.length)
      && (!verdict || of.some(checks => verdictOf(checks) === verdict));
    line.hidden = !keep;
    if (!keep) return;
    groups.add(row.grouping);
    shown += 1;
    line.querySelectorAll("button").forEach(button => button.classList.toggle("dim", verdict !== "" && !button.classList.contains(verdict)));
  });
  document.querySelectorAll("tr[data-group]").forEach(line => { line.hidden = !groups.has(line.dataset.group); });
  byId("shown").textContent = shown + " of " + data.rows.length + " cases";
}

byId("counts").append(element("b", { textContent: data.counts.pass }), " passed, ", element("b", { textContent: data.counts.fail }),
  " failed, ", element("b", { textContent: data.counts.unsupported }), " not supported.");
byId("versions").textContent = data.versions;
byId("left-out").append(...data.left_out.map(textContent => element("li", { textContent: "left out: " + textContent })));
options("feature", [...new Set(data.rows.map(row => row.feature).filter(Boolean))]);
options("target", [...new Set(data.columns.map(column => column.name))]);
drawCauses();
drawHead();
drawBody();
byId("filters").addEventListener("input", filter);
byId("filters").addEventListener("submit", event => event.preventDefault());
filter();
openLinked();
