// Many customers: a file is read, sent and scored, and its results are shown and written beside its columns.

import { drawHistogram } from "./charts.js";
import { asText, csvLine, hasComma, readRows, readTable, sentCell, similar } from "./csv.js";
import { $, counted, define, number, percent, put, say, show, tabulate } from "./dom.js";
import { letDraw, Problem, send, sleep, uploader } from "./http.js";
import { readCard } from "./service.js";

/** @typedef {{id: string, name: string, rows: number, refused: number, listed: any[]}} Batch `rows` are those sent */
/** @typedef {{table: import("./csv.js").Table, lines: number[], body: Blob, hasCommas: boolean}} Prepared */

const BINS = 20;
const TOP = 20;
const ADDED = ["churn_probability", "churn_error"]; // as the command `score` names them

/** @type {import("./schema.js").Feature[]} */
let features = [];
let work = new AbortController();
/** @type {Prepared | null} the file, which a reload forgets */
let prepared = null;
/** @type {Batch | null} */
let batch = null;
/** @type {(number | string)[]} by row: its probability, or its error; nothing for a refused row */
let results = [];
let sorted = new Float64Array();
let sums = new Float64Array(); // of the highest k probabilities
let counts = [0];
let noun = "";

/** @param {import("./schema.js").Schema} schema */
export function startBatch(schema) {
  ({ features } = schema);
  addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
  addEventListener("dragleave", (event) => event.relatedTarget || $("drop").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    const file = event.dataTransfer?.files[0];
    if (!file) return;
    if (!location.hash.startsWith("#file")) location.hash = "#file";
    open(file);
  });
  $("file").onchange = () => { open($("file").files[0]); $("file").value = ""; };
  $("sample").onclick = async () => open(new File([await makeSample()], "sample.csv"));
  $("score").onclick = () => run(sendBatch);
  $("stop").onclick = () => work.abort();
  for (const id of ["again", "another"]) $(id).onclick = restart;
  $("erase").onclick = () => { erase(); restart(); };
  $("threshold").oninput = () => setThreshold(Number($("threshold").value));
  $("threshold-number").onchange = () => setThreshold(Math.min(Math.max($("threshold-number").value / 100, 0), 1));
  addEventListener("hashchange", find);
  stage("drop");
  find();
}

// Find the batch of the address again; keep its id there.
function find() {
  const [view, id] = location.hash.split("/");
  if (view !== "#file") return;
  if (!id) setAddress();
  else if (id !== batch?.id) {
    batch = { name: "Batch", rows: 0, refused: 0, listed: [], ...history.state, id };
    prepared = null;
    run(follow);
  }
}

function setAddress() {
  history.replaceState(batch, "", batch?.id ? `#file/${batch.id}` : "#file");
}

function stage(name) {
  for (const one of ["drop", "check", "run", "done"]) show(one, one === name);
  const { refused = 0, listed = [] } = batch ?? {};
  show("refused", refused);
  put("refused-text", `${counted(refused, "refused row")}${refused > listed.length ? `; the first ${listed.length} of them` : ""}`);
  tabulate("refused-rows", ["Line", "Column", "Fault"], listed.flatMap(({ row, line, errors }) =>
    errors.map(({ pointer, message }) => [number(line ?? row + 1), pointer.split("/")[2] ?? "", message])));
}

function restart() {
  work.abort();
  batch = prepared = null;
  results = [];
  setAddress();
  say("file-fault", "");
  stage("drop");
  $("file").focus();
}

// Run a step that can be cancelled; explain its fault.
async function run(step) {
  work.abort();
  const own = (work = new AbortController());
  say("file-fault", "");
  try {
    await step(own.signal);
  } catch (error) {
    if (own !== work) return; // another file has replaced it
    const isCancelled = own.signal.aborted;
    say("file-fault", isCancelled ? "Cancelled. Nothing more is computed." : error.message);
    if (isCancelled) erase();
    else if (results.length) return stage("done"); // the file of an old batch was not the right one
    const { rows, refused } = error instanceof Problem ? error.body : {};
    batch = rows ? { id: "", name: "", rows: 0, refused: refused ?? 0, listed: withLines(rows) } : null;
    setAddress();
    stage(prepared ? "check" : "drop");
  }
}

// Cancel the rows that wait, and erase the results.
function erase() {
  if (batch?.id) send(`churn/batches/${batch.id}`, { method: "DELETE" }).catch(() => {});
}

// Recognise a file, and read it once: count its rows, and write the body with the features only.
function open(file) {
  const isOfBatch = results.length > 0 && !prepared; // a batch that was found again
  return run(async (signal) => {
    const table = await readTable(file, features.map(({ name }) => name));
    if (!isOfBatch) {
      batch = prepared = null;
      results = [];
      setAddress();
      stage("check");
    }
    if (showColumns(table).length) return;
    const ready = await prepare(table, signal);
    const rows = ready.lines.length;
    if (!rows) throw new Error("The file has a header and no row.");
    if (isOfBatch && batch?.rows && batch.rows !== rows) {
      throw new Error(`This file has ${counted(rows, "row")}, and the batch had ${counted(batch.rows, "row")}. Choose the same file.`);
    }
    prepared = ready;
    if (isOfBatch) return join(signal);
    $("score").disabled = false;
    $("score").focus();
  });
}

// Show which columns are recognised; return the missing ones.
function showColumns({ file, header, places, delimiter, encoding }) {
  const missing = features.filter((one) => one.isRequired && !places.has(one.name)).map((one) => one.name);
  const others = header.filter((_, place) => ![...places.values()].includes(place));
  put("name", file.name);
  put("size", `${megabytes(file.size)}, ${encoding.toUpperCase()}, ${{ ",": "commas", ";": "semicolons", "\t": "tabs" }[delimiter] ?? delimiter}`);
  put("score", "Score");
  $("score").disabled = true;
  define("found", [["Rows", "–"], ["Columns recognised", `${places.size} of ${features.length}`], ["Columns missing", number(missing.length)], ["Columns that stay here", number(others.length)]]);
  tabulate("columns", ["Column", "State", ""], [
    ...missing.map((name) => [name, "missing", similar(name, others) ? `Is it “${similar(name, others)}”? Rename it.` : ""]),
    ...features.filter(({ name }) => places.has(name)).map(({ name, description }) => [name, "recognised", description]),
    ...others.map((name) => [name, "stays here", "Not sent; the scored file has it again."])]);
  $("columns").closest("details").open = missing.length > 0;
  if (missing.length) say("file-fault", `The header, which is the first line, lacks ${missing.join(", ")}.`);
  return missing;
}

// Collects text as parts of a Blob, because one string of a large file is slow.
class Parts {
  parts = [""];

  add(text) {
    const last = this.parts.length - 1;
    if (this.parts[last].length > 1e6) this.parts.push(text);
    else this.parts[last] += text;
  }

  blob() { return new Blob(this.parts, { type: "text/csv" }); }
}

async function prepare(table, signal) {
  const places = [...table.places.values()];
  const isSemicolon = table.delimiter === ";";
  const body = new Parts();
  const lines = [];
  let hasCommas = false;
  body.add(csvLine(["#", ...table.places.keys()], ",")); // because of the number no row is blank
  for await (const rows of readRows(table, signal)) {
    for (const { line, cells } of rows) {
      lines.push(line);
      hasCommas ||= isSemicolon && places.some((place) => hasComma(cells[place].trim()));
      body.add(csvLine([String(lines.length), ...places.map((place) => sentCell(cells[place], isSemicolon))], ","));
    }
    $("found").querySelector("dd").textContent = number(lines.length);
  }
  put("score", `Score ${counted(lines.length, "row")}`);
  return { table, lines, body: body.blob(), hasCommas };
}

async function sendBatch(signal) {
  const { table: { file: { name } }, body, lines } = prepared;
  batch = null;
  stage("run");
  put("run-name", name);
  const onProgress = (sent, total) =>
    sent < total ? progress(`Sending ${megabytes(sent)} of ${megabytes(total)}`, sent, total) : progress("The API checks every row");
  onProgress(0, body.size);
  const options = { method: "POST", headers: { "Content-Type": "text/csv" }, body, signal, onPause };
  const { batch_id, refused, rows } = await (await send("churn/batches", options, uploader(onProgress))).json();
  batch = { id: batch_id, name, rows: lines.length, refused, listed: withLines(rows) };
  setAddress();
  await follow(signal);
}

// Refused rows with their lines in the file; they were sent with others.
const withLines = (rows) => rows.map((one) => ({ ...one, line: prepared?.lines[one.row] ?? one.line }));

// Follow a batch to its end, and show its results.
async function follow(signal) {
  const { id, name } = batch;
  results = [];
  stage("run");
  put("run-name", name);
  say("stage", "Scoring");
  const started = performance.now();
  for (let first = -1; ; await sleep(first ? 1 : 0.3, signal)) {
    const response = await send(`churn/batches/${id}`, { signal, onPause });
    const { total, done, failed } = await response.json();
    progress(`Scored ${number(done)} of ${counted(total, "row")}${failed ? `, ${number(failed)} failed` : ""}`, done, total);
    if (response.status === 200) break;
    if (first < 0) first = done;
    const rate = (1000 * (done - first)) / (performance.now() - started);
    if (rate > 0) put("run-rate", `${number(Math.round(rate))} rows per second, ${duration((total - done) / rate)} left`);
  }
  progress("Fetching the results");
  const { body } = await send(`churn/batches/${id}/results`, { headers: { Accept: "application/x-ndjson" }, signal, onPause });
  const stream = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", isLast = false; !isLast; ) {
    const { done, value = "" } = await stream.read();
    const lines = (rest + value).split("\n");
    rest = lines.pop() ?? "";
    for (const [at, line] of lines.entries()) {
      const { row, probability, error } = JSON.parse(line);
      results[row] = error ?? probability;
      if (at % 1000 === 0) await letDraw();
    }
    isLast = done;
  }
  await summarise();
  await join(signal);
}

// Sort and count the probabilities once, so that a moved threshold costs nothing.
async function summarise() {
  const found = results.filter((one) => typeof one === "number");
  sorted = Float64Array.from(found).sort().reverse();
  sums = new Float64Array(sorted.length + 1);
  counts = Array(BINS).fill(0);
  sorted.forEach((p, place) => {
    sums[place + 1] = sums[place] + p;
    counts[Math.min(Math.floor(p * BINS), BINS - 1)]++;
  });
  let failed = 0;
  for (const one of results) failed += Number(typeof one === "string");
  const { name, refused } = batch;
  const { threshold, name: model = "" } = await readCard().catch(() => ({}));
  noun = model;
  put("done-name", name);
  put("done-size", `${counted(sorted.length, "row")} scored${refused ? `, ${number(refused)} refused` : ""}${failed ? `, ${number(failed)} failed` : ""}`);
  put("threshold-text", threshold == null ? "" : `The model's own is ${percent(threshold)}.`);
  setThreshold(threshold ?? 0.5);
  say("stage", `Done: ${$("done-size").textContent}`);
}

function setThreshold(threshold) {
  $("threshold").value = threshold;
  $("threshold").setAttribute("aria-valuetext", percent(threshold));
  $("threshold-number").value = Math.round(1000 * threshold) / 10;
  let [low, high] = [0, sorted.length]; // the number of probabilities that reach the threshold, by bisection
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] >= threshold) low = middle + 1;
    else high = middle;
  }
  drawHistogram($("histogram"), counts, threshold);
  const [part, whole] = [sums[low], sums[sorted.length]];
  define("share", [
    ["At or above", number(low), `${percent(low / (sorted.length || 1))} of all rows`],
    [`Expected cases${noun && ` of ${noun}`}`, number(Math.round(part)), low ? `${percent(part / low)} of them, if the model is calibrated` : ""],
    ["Share of all expected cases", percent(part / (whole || 1)), `of ${number(Math.round(whole))}`]]);
}

// Read the file again: write the download, and find the rows with the highest probabilities. Without the file, the rows have numbers only.
async function join(signal) {
  const least = sorted[Math.min(TOP, sorted.length) - 1];
  const top = [];
  results.forEach((p, row) => { if (Number(p) >= least) top.push({ p: Number(p), row }); });
  top.sort((a, b) => b.p - a.p).splice(TOP);
  const wanted = new Set(top.map(({ row }) => row));
  const cells = new Map();
  const scored = new Parts();
  const faults = new Map(batch?.listed.map(({ row, errors }) => [row, errors.map(({ pointer, message }) => `${pointer.split("/")[2]}: ${message}`).join("; ")]));
  const { table, lines, hasCommas } = prepared ?? {};
  const { delimiter = ",", header = [] } = table ?? {};
  const kept = [...header.keys()].filter((place) => ![...ADDED, "churn"].includes(header[place].trim()));
  const write = (row, texts) => {
    const result = results[row] ?? faults.get(row) ?? "Refused: the row is not a valid customer";
    const shown = typeof result === "number" ? [String(result).replace(".", hasCommas ? "," : "."), ""] : ["", asText(result)];
    scored.add(csvLine([...texts.map(asText), ...shown], delimiter));
  };
  if (table) {
    const names = kept.map((place) => header[place]);
    scored.add(`${table.hasMark ? "\ufeff" : ""}${table.hasSeparatorLine ? `sep=${delimiter}\r\n` : ""}${csvLine([...names.map(asText), ...ADDED], delimiter)}`);
    let row = 0;
    for await (const rows of readRows(table, signal)) {
      for (const one of rows) {
        const texts = kept.map((place) => one.cells[place]);
        if (wanted.has(row)) cells.set(row, texts);
        write(row++, texts);
      }
    }
    tabulate("top", ["Probability", "Line", ...names], top.map(({ p, row }) => [percent(p), number(lines?.[row] ?? row), ...cells.get(row)]));
  } else {
    scored.add(csvLine(["row", ...ADDED], delimiter));
    results.forEach((_, row) => write(row, [String(row)]));
    tabulate("top", ["Probability", "Row"], top.map(({ p, row }) => [percent(p), number(row + 1)]));
  }
  const link = $("download");
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(scored.blob());
  link.download = `${batch?.name.replace(/\.\w+$/, "")}-scored.csv`;
  put("download", table ? "Download the scored file" : "Download rows and probabilities");
  show("join", !table);
  stage("done");
}

const onPause = (reason, seconds) => seconds && progress(`${reason} Trying again in ${seconds} s`);

// Without a value the end is unknown.
function progress(text, value = -1, most = 1) {
  put("run-text", text);
  put("run-rate", "");
  $("bar").max = most || 1;
  if (value < 0) $("bar").removeAttribute("value");
  else $("bar").value = value;
}

const megabytes = (bytes) => (bytes < 1e5 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

const duration = (seconds) => (seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.round(seconds / 60)} min`);

// Customers at random within the training data, always the same.
async function makeSample() {
  const card = await readCard().catch(() => ({ features: [] }));
  let seed = 11;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  const value = ({ name, type, categories, example }) => {
    if (categories.length) return categories[Math.floor(random() * categories.length)];
    const { minimum, maximum } = card.features.find((one) => one.name === name) ?? {};
    if (minimum == null) return String(example ?? "");
    return (minimum + random() * random() * (maximum - minimum)).toFixed(type === "integer" ? 0 : 3);
  };
  const rows = Array.from({ length: 200 }, (_, row) => [String(row + 1), ...features.map(value)]);
  return [["id", ...features.map(({ name }) => name)], ...rows].map((row) => csvLine(row, ",")).join("");
}
