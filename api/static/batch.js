// Many customers: a file is read, sent and scored, and its results are shown and written beside its columns.

import { drawHistogram } from "./charts.js";
import { asText, csvLine, hasComma, readRows, readTable, sentCell, similar } from "./csv.js";
import { $, counted, define, el, number, percent, say, show, tabulate } from "./dom.js";
import { Problem, send, sleep, uploader } from "./http.js";

/** @typedef {import("./csv.js").Table} Table */
/** @typedef {{id: string, name: string, rows: number, refused: number, listed: any[]}} Batch its numbers; `rows` are those sent */
/** @typedef {{table: Table, rows: number, lines: number[], body: Blob, hasCommas: boolean}} Prepared */

const PART = 1 << 20; // characters of a part of a Blob
const BINS = 20;
const TOP = 20;
const STAGES = ["drop", "check", "run", "done"];

/** @type {import("./schema.js").Schema} */
let schema;
/** @type {() => Promise<any>} */
let readCard;
/** @type {AbortController} */
let work = new AbortController();
/** @type {Prepared | null} the file, which a reload forgets */
let prepared = null;
/** @type {Batch | null} */
let batch = null;
/** @type {(number | string | undefined)[]} by row: its probability, or its error */
let results = [];
let sorted = new Float64Array();
let sums = new Float64Array(); // of the highest k probabilities
/** @type {number[]} */
let counts = [];
let noun = "churn";

/** @param {import("./schema.js").Schema} given @param {() => Promise<any>} card */
export function startBatch(given, card) {
  schema = given;
  readCard = card;
  const drop = $("drop");
  addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", (event) => event.relatedTarget || drop.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const [file] = event.dataTransfer?.files ?? [];
    if (file) { location.hash = location.hash.startsWith("#file") ? location.hash : "#file"; open(file); }
  });
  $("file").onchange = () => { const [file] = $("file").files; if (file) open(file); $("file").value = ""; };
  $("sample").onclick = async () => open(new File([await makeSample()], "sample.csv", { type: "text/csv" }));
  $("sample-file").onclick = async (event) => { event.preventDefault(); save(new Blob([await makeSample()]), "sample.csv"); };
  $("score").onclick = () => run(sendBatch);
  $("stop").onclick = () => { work.abort(); };
  for (const button of document.querySelectorAll(".again")) button.addEventListener("click", restart);
  $("erase").onclick = () => { erase(); restart(); };
  $("download-rows").onclick = downloadRows;
  $("threshold").oninput = () => setThreshold(Number($("threshold").value));
  $("threshold-number").onchange = () => setThreshold(Math.min(Math.max(Number($("threshold-number").value) / 100, 0), 1));
  addEventListener("hashchange", find);
  stage("drop");
  find();
}

// Find the batch of the address again.
function find() {
  const [view, id] = location.hash.slice(1).split("/");
  if (view !== "file" || !id || id === batch?.id) return;
  batch = { name: "Batch", rows: 0, refused: 0, listed: [], ...history.state, id };
  prepared = null;
  run(follow);
}

function stage(name) {
  for (const one of STAGES) show(one, one === name);
  showRefused();
}

function restart() {
  work.abort();
  batch = prepared = null;
  results = [];
  history.replaceState(null, "", "#file");
  say("file-fault", "");
  say("stage", "");
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
    if (isCancelled) erase();
    if (error instanceof Problem && error.body.rows) {
      batch = { id: "", name: "", rows: 0, refused: error.body.refused ?? 0, listed: mapLines(error.body.rows) };
    }
    say("file-fault", isCancelled ? "Cancelled. Nothing more is computed." : error instanceof Error ? error.message : String(error));
    stage(prepared ? "check" : "drop");
    if (batch?.id) { batch = null; history.replaceState(null, "", "#file"); }
  }
}

// Cancel the rows that wait, and erase the results.
function erase() {
  if (batch?.id) send(`churn/batches/${batch.id}`, { method: "DELETE" }).catch(() => {});
}

// Recognise a file, and read it once: count its rows, and make the body with the features only.
async function open(file) {
  const isJoin = batch && !prepared && results.length > 0; // the results of a batch that was found again
  await run(async (signal) => {
    const table = await readTable(file, schema.features.map((feature) => feature.name));
    if (!isJoin) { batch = null; results = []; history.replaceState(null, "", "#file"); }
    const missing = showColumns(table);
    if (isJoin && missing.length) throw new Error(`The file lacks ${missing.join(", ")}.`);
    if (!isJoin) stage("check");
    const ready = missing.length ? null : await prepare(table, signal);
    if (!ready) return;
    if (!ready.rows) throw new Error("The file has a header and no row.");
    prepared = ready;
    if (!isJoin) { $("score").disabled = false; $("score").focus(); return; }
    if (batch?.rows && batch.rows !== ready.rows) {
      prepared = null;
      throw new Error(`This file has ${counted(ready.rows, "row")}, and the batch had ${counted(batch.rows, "row")}. Choose the same file.`);
    }
    await join(signal);
  });
}

// Show which columns are recognised; return the missing features.
function showColumns({ file, header, places, delimiter, encoding }) {
  const required = schema.features.filter((feature) => feature.isRequired);
  const missing = required.filter((feature) => !places.has(feature.name)).map((feature) => feature.name);
  const ignored = header.filter((_, place) => ![...places.values()].includes(place));
  const delimiters = /** @type {Record<string, string>} */ ({ ",": "commas", ";": "semicolons", "\t": "tabs" });
  $("name").textContent = file.name;
  say("size", `${megabytes(file.size)}, ${encoding.toUpperCase()}, ${delimiters[delimiter] ?? `delimiter ${delimiter}`}`);
  showFound(places.size, ignored.length, missing.length, "counting");
  const rows = [
    ...missing.map((name) => [name, "missing", similar(name, ignored) ? `Is it “${similar(name, ignored)}”? Rename it.` : ""]),
    ...schema.features.filter((one) => places.has(one.name)).map((one) => [one.name, "recognised", one.description]),
    ...ignored.map((name) => [name, "stays here", "Not sent; it is in the scored file again."])];
  tabulate("columns", ["Column", "State", ""], rows, "Columns of the file");
  $("columns").closest("details").open = missing.length > 0;
  $("score").disabled = true;
  $("score").textContent = "Score";
  if (missing.length) {
    say("file-fault", places.size ? `The header lacks ${missing.join(", ")}.`
      : `The first line has none of the columns ${missing.join(", ")}: it must be a header with these names.`);
  }
  return missing;
}

function showFound(recognised, ignored, missing, rows) {
  define("found", [["Rows", rows], ["Columns recognised", `${recognised} of ${schema.features.length}`], ["Columns missing", String(missing)], ["Columns that stay here", String(ignored)]]);
}

async function prepare(table, signal) {
  const features = [...table.places.keys()];
  const places = [...table.places.values()];
  const isSemicolon = table.delimiter === ";";
  const ignored = table.header.length - features.length;
  /** @type {string[]} */
  const parts = [];
  let text = csvLine(["#", ...features], ","); // the number makes no row blank
  /** @type {number[]} */
  const lines = [];
  let hasCommas = false;
  for await (const rows of readRows(table, () => {}, signal)) {
    for (const { line, cells } of rows) {
      lines.push(line);
      hasCommas ||= isSemicolon && places.some((place) => hasComma(cells[place].trim()));
      text += csvLine([String(lines.length), ...places.map((place) => sentCell(cells[place], isSemicolon))], ",");
      if (text.length > PART) { parts.push(text); text = ""; }
    }
    showFound(features.length, ignored, 0, number(lines.length));
  }
  parts.push(text);
  $("score").textContent = `Score ${counted(lines.length, "row")}`;
  return { table, rows: lines.length, lines, body: new Blob(parts, { type: "text/csv" }), hasCommas };
}

async function sendBatch(signal) {
  if (!prepared) return;
  const { table: { file }, body, rows } = prepared;
  batch = null;
  stage("run");
  $("run-name").textContent = file.name;
  progress("Sending", 0, 1);
  const onProgress = (sent, total) =>
    sent < total ? progress(`Sending ${megabytes(sent)} of ${megabytes(total)}`, sent, total) : progress("The API checks every row");
  const headers = { "Content-Type": "text/csv" };
  const response = await send("churn/batches", { method: "POST", headers, body, signal, onPause }, uploader(onProgress));
  const accepted = await response.json();
  batch = { id: accepted.batch_id, name: file.name, rows, refused: accepted.refused, listed: mapLines(accepted.rows) };
  history.replaceState(batch, "", `#file/${batch.id}`);
  await follow(signal);
}

// The lines of the file for those of the body.
const mapLines = (rows) => rows.map((one) => ({ ...one, line: prepared?.lines[one.row] ?? one.line }));

// Follow a batch to its end, and show its results.
async function follow(signal) {
  if (!batch) return;
  stage("run");
  $("run-name").textContent = batch.name;
  say("stage", "Scoring");
  const started = performance.now();
  let first = -1;
  for (;;) {
    const response = await send(`churn/batches/${batch.id}`, { signal, onPause });
    const { total, done, failed } = await response.json();
    if (first < 0) first = done;
    const rate = (1000 * (done - first)) / (performance.now() - started);
    $("run-rate").textContent = rate > 0 ? `${number(Math.round(rate))} rows per second, ${duration((total - done) / rate)} left` : "";
    progress(`Scored ${number(done)} of ${counted(total, "row")}${failed ? `, ${number(failed)} failed` : ""}`, done, total);
    if (response.status === 200) break;
    await sleep(done === first ? 0.3 : 1, signal);
  }
  await fetchResults(signal);
  await summarise();
  await join(signal);
}

async function fetchResults(signal) {
  progress("Fetching the results");
  const response = await send(`churn/batches/${batch?.id}/results`, { headers: { Accept: "application/x-ndjson" }, signal, onPause });
  results = [];
  let rest = "";
  const stream = /** @type {ReadableStream<any>} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await stream.read();
    const lines = (rest + (value ?? "")).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      const { row, probability, error } = JSON.parse(line);
      results[row] = error ?? probability;
    }
    if (done) break;
    await sleep(0); // let the page draw and answer
  }
}

// Sort and count the probabilities once, so that a moved threshold costs nothing.
async function summarise() {
  const found = results.filter((one) => typeof one === "number");
  sorted = Float64Array.from(/** @type {number[]} */ (found)).sort().reverse();
  sums = new Float64Array(sorted.length + 1);
  counts = Array(BINS).fill(0);
  sorted.forEach((p, place) => {
    sums[place + 1] = sums[place] + p;
    counts[Math.min(Math.floor(p * BINS), BINS - 1)]++;
  });
  const card = await readCard().catch(() => null);
  noun = card?.name ?? noun;
  const failed = results.filter((one) => typeof one === "string").length;
  $("done-name").textContent = batch?.name ?? "";
  say("done-size", `${counted(sorted.length, "row")} scored${batch?.refused ? `, ${number(batch.refused)} refused` : ""}${failed ? `, ${number(failed)} failed` : ""}`);
  say("threshold-text", card?.threshold == null ? "" : `The model's own is ${percent(card.threshold)}.`);
  show("join", !prepared);
  show("download-rows", !prepared);
  show("download", false);
  stage("done");
  setThreshold(card?.threshold ?? 0.5);
  say("stage", `Done: ${$("done-size").textContent}`);
}

function setThreshold(threshold) {
  $("threshold").value = String(threshold);
  $("threshold").setAttribute("aria-valuetext", percent(threshold));
  $("threshold-number").value = String(Math.round(1000 * threshold) / 10);
  let [low, high] = [0, sorted.length]; // the number of probabilities that reach the threshold, by bisection
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] >= threshold) low = middle + 1;
    else high = middle;
  }
  const all = sorted.length || 1;
  drawHistogram($("histogram"), counts, threshold);
  const expected = sums[low];
  define("share", [
    ["At or above", number(low), `${percent(low / all)} of all rows`],
    [`Expected cases of ${noun}`, number(Math.round(expected)), low ? `${percent(expected / low)} of them, if the model is calibrated` : ""],
    ["Share of all expected cases", sums[sorted.length] ? percent(expected / sums[sorted.length]) : "–", `of ${number(Math.round(sums[sorted.length]))}`]]);
}

// Read the file again: write the download, and find the rows with the highest probabilities.
async function join(signal) {
  const order = [...results.keys()].filter((row) => typeof results[row] === "number")
    .sort((a, b) => Number(results[b]) - Number(results[a])).slice(0, TOP);
  /** @type {Map<number, string[]>} */
  const cells = new Map();
  if (prepared) {
    const { table, hasCommas } = prepared;
    const added = ["churn_probability", "churn_error"];
    const kept = [...table.header.keys()].filter((place) => ![...added, "churn"].includes(table.header[place].trim()));
    const wanted = new Set(order);
    const listed = new Map(batch?.listed.map((one) => [one.row, faultsText(one)]));
    /** @type {string[]} */
    const parts = [];
    let text = `${table.hasMark ? "\ufeff" : ""}${table.hasSeparatorLine ? `sep=${table.delimiter}\r\n` : ""}`;
    text += csvLine([...kept.map((place) => asText(table.header[place])), ...added], table.delimiter);
    let row = 0;
    for await (const rows of readRows(table, () => {}, signal)) {
      for (const one of rows) {
        const result = results[row];
        const probability = typeof result === "number" ? String(result) : "";
        const error = probability ? "" : result ?? listed.get(row) ?? "Refused: the row is not a valid customer";
        text += csvLine([...kept.map((place) => asText(one.cells[place])), hasCommas ? probability.replace(".", ",") : probability, asText(String(error))], table.delimiter);
        if (wanted.has(row)) cells.set(row, kept.map((place) => one.cells[place]));
        if (text.length > PART) { parts.push(text); text = ""; }
        row++;
      }
    }
    parts.push(text);
    const link = $("download");
    URL.revokeObjectURL(link.href);
    link.href = URL.createObjectURL(new Blob(parts, { type: "text/csv" }));
    link.download = `${table.file.name.replace(/\.\w+$/, "")}-scored.csv`;
    tabulate("top", ["Probability", "Line", ...kept.map((place) => table.header[place])],
      order.map((one) => [percent(Number(results[one])), number(prepared?.lines[one] ?? one), ...(cells.get(one) ?? [])]), "Rows with the highest probabilities");
  } else {
    tabulate("top", ["Probability", "Row"], order.map((one) => [percent(Number(results[one])), number(one + 1)]), "Rows with the highest probabilities");
  }
  show("download", prepared);
  show("join", !prepared);
  show("download-rows", !prepared);
  stage("done");
}

function downloadRows() {
  const lines = ["row,probability,error\r\n"];
  results.forEach((one, row) => lines.push(csvLine(typeof one === "number" ? [String(row), String(one), ""] : [String(row), "", asText(one ?? "")], ",")));
  save(new Blob(lines), "results.csv");
}

function save(blob, name) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function showRefused() {
  show("refused", batch?.refused);
  if (!batch?.refused) return;
  const more = batch.refused > batch.listed.length ? `; the first ${batch.listed.length} of them` : "";
  $("refused-text").textContent = `${counted(batch.refused, "refused row")}${more}`;
  tabulate("refused-rows", ["Line", "Column", "Fault"], batch.listed.flatMap((one) =>
    one.errors.map((fault) => [number(one.line ?? one.row + 1), fault.pointer.split("/")[2] ?? "", fault.message])), "Refused rows");
}

const faultsText = (row) => row.errors.map((fault) => `${fault.pointer.split("/")[2] ?? ""}: ${fault.message}`).join("; ");

const onPause = (reason, seconds) => { if (seconds) progress(`${reason} Trying again in ${seconds} s`); };

function progress(text, value, most = 1) {
  $("run-text").textContent = text;
  if (value == null) $("bar").removeAttribute("value");
  else { $("bar").max = most || 1; $("bar").value = value; }
  if (value == null) $("run-rate").textContent = "";
}

const megabytes = (bytes) => (bytes < 1e5 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

const duration = (seconds) => (seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.round(seconds / 60)} min`);

// Customers at random within the training data, always the same.
async function makeSample() {
  const card = await readCard().catch(() => null);
  const ranges = new Map((card?.features ?? []).map((one) => [one.name, one]));
  let seed = 11;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  const lines = [csvLine(["id", ...schema.features.map((feature) => feature.name)], ",")];
  for (let row = 1; row <= 200; row++) {
    lines.push(csvLine([String(row), ...schema.features.map((feature) => {
      if (feature.categories.length) return feature.categories[Math.floor(random() * feature.categories.length)];
      const { minimum, maximum } = /** @type {any} */ (ranges.get(feature.name)) ?? {};
      if (minimum == null) return String(feature.example ?? "");
      const value = minimum + random() * random() * (maximum - minimum);
      return feature.type === "integer" ? String(Math.round(value)) : value.toFixed(3);
    })], ","));
  }
  return lines.join("");
}
