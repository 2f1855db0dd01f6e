// A file is read, sent and scored; its results are shown and written beside its columns.

import { drawHistogram } from "./charts.js";
import { asText, COMMA, csvLine, readRows, readTable, splitLine } from "./csv.js";
import { $, counted, define, number, percent, put, say, show, tabulate } from "./dom.js";
import { faultText, letDraw, Problem, read, send, sleep, uploader } from "./http.js";
import { readCard } from "./service.js";

/**
 * @typedef {{id: string, name: string, rows: number, refused: number, listed: any[], firstLine?: number}} Batch
 *   `rows` are those sent; firstLine is the line of row 0, if each row has the line after that of the row before
 */
/**
 * @typedef {import("./csv.js").Table} Table
 * @typedef {{table: Table, lines: number[], texts: string[], body: Blob, hasCommas: boolean}} Prepared
 */

const BINS = 20;
const TOP = 20;
const UPLOAD_S = 3600;
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
let sorted = new Float64Array(); // the probabilities, the highest first
let counts = [0];
let noun = "";
let isPart = false; // some rows have no probability

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
  $("sample").onclick = () => open(new File([makeSample()], "sample.csv"));
  $("score").onclick = () => run(sendBatch);
  $("stop").onclick = () => work.abort();
  $("again").onclick = () => run(follow);
  $("another").onclick = restart;
  $("erase").onclick = () => { erase(); restart(); };
  $("threshold").oninput = () => setThreshold(Number($("threshold").value));
  addEventListener("hashchange", find);
  stage("drop");
  find();
}

// Find the batch of the address again; keep its id there.
function find() {
  const [view, id] = location.hash.split("/");
  if (view !== "#file") return;
  if (!id) setAddress();
  else if (!/^[\w-]+$/.test(id)) {
    forget();
    stage("drop");
    say("file-fault", "The end of the address is not the id of a batch. Choose a file.");
  } else if (id !== batch?.id) {
    batch = { name: "Batch", rows: 0, refused: 0, listed: [], ...history.state, id };
    prepared = null;
    run(follow);
  }
}

function setAddress() {
  history.replaceState(batch, "", batch?.id ? `#file/${batch.id}` : "#file");
}

function stage(name) {
  const focused = document.activeElement;
  for (const one of ["drop", "check", "run", "broken", "done"]) show(one, one === name);
  show("work", name !== "drop");
  show("another", name !== "run");
  const { refused = 0, listed = [] } = batch ?? {};
  show("refused", refused);
  put("refused-text", `${counted(refused, "refused row")}${refused > listed.length ? `; ${listed.length} shown` : ""}`);
  tabulate("refused-rows", ["Line", "Column", "Fault"], listed.flatMap(({ row, line, errors }) =>
    errors.map((fault) => [number(line ?? row), fault.pointer.split("/")[2] ?? "", faultText(fault)])));
  if (focused !== document.body && !focused?.checkVisibility()) $(name === "drop" ? "file" : "name").focus();
}

function forget() {
  batch = prepared = null;
  results = [];
  setAddress();
}

function restart() {
  work.abort();
  forget();
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
    /** @type {Record<string, any>} */
    const body = error instanceof Problem ? error.body : {};
    const { status, rows, refused = 0 } = body;
    const isLost = error instanceof TypeError || error instanceof SyntaxError; // a part of a response
    say("file-fault", isLost ? "The connection to the API was lost." : error.message);
    if (isCancelled) {
      say("file-fault", "Cancelled. Nothing more is computed.");
      erase();
    } else if (results.length) return summarise(); // the file of an old batch was not the right one
    else if (batch?.id && ![404, 410].includes(status)) return stage("broken"); // the batch is still there
    batch = rows ? { id: "", name: "", rows: 0, refused, listed: withLines(rows) } : null;
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
    if (!results.length) forget();
    const table = await readTable(file, features.map(({ name }) => name));
    if (!isOfBatch) {
      forget();
      stage("check");
    }
    if (showColumns(table).length) return isOfBatch && summarise();
    const ready = await prepare(table, signal);
    const rows = ready.lines.length;
    if (!rows) throw new Error("The file has a header and no row.");
    if (isOfBatch && batch.rows && (batch.rows !== rows || batch.name !== file.name)) {
      throw new Error(`This is another file: choose ${batch.name} with ${counted(batch.rows, "row")}.`);
    }
    prepared = ready;
    if (isOfBatch) return summarise();
    $("score").disabled = false;
    $("score").focus();
  });
}

// Show which columns are recognised; return the missing ones.
function showColumns({ file, header, places, delimiter, encoding }) {
  const names = features.map((one) => one.name);
  const missing = features.filter((one) => one.isRequired && !places.has(one.name)).map((one) => one.name);
  const others = header.filter((_, place) => ![...places.values()].includes(place));
  put("name", file.name);
  put("size", `${megabytes(file.size)}, ${encoding.toUpperCase()}, delimiter ${JSON.stringify(delimiter)}`);
  put("score", "Score");
  $("score").disabled = true;
  define($("found"), [["Rows", "–"], ["Columns recognised", `${places.size} of ${features.length}`],
    ["Columns missing", number(missing.length)], ["Other columns", number(others.length)]]);
  put("others", others.length ? `Not sent: ${others.join(", ")}` : "");
  if (!places.size) {
    const example = names.slice(0, 3).join(", ");
    say("file-fault", `The first line has no name of a feature. It must be a header, such as ${example} and so on.`);
  } else if (missing.length) say("file-fault", `The header lacks ${missing.join(", ")}.`);
  return missing;
}

async function prepare(table, signal) {
  const places = [...table.places.values()];
  const { delimiter, header } = table;
  const isSemicolon = delimiter === ";";
  const body = [csvLine(["#", ...table.places.keys()], ",")]; // because of the number no row is blank
  const [lines, texts] = [[], []];
  const withPoint = (value) => (isSemicolon && COMMA.test(value) ? value.replace(",", ".") : value);
  let hasCommas = false;
  for await (const rows of readRows(table, signal)) {
    for (const { line, cells } of rows) {
      lines.push(line);
      texts.push(csvLine(cells.filter((_, place) => isKept(header[place])).map(asText), delimiter));
      const values = places.map((place) => cells[place].trim());
      hasCommas ||= isSemicolon && values.some((value) => COMMA.test(value));
      body.push(csvLine([String(lines.length), ...values.map(withPoint)], ","));
    }
    $("found").querySelector("dd").textContent = number(lines.length);
  }
  put("score", `Score ${counted(lines.length, "row")}`);
  return { table, lines, texts, body: new Blob([body.join("\r\n")]), hasCommas };
}

async function sendBatch(signal) {
  const { table: { file: { name } }, body, lines } = prepared;
  batch = null;
  stage("run");
  put("name", name);
  const onProgress = (sent, total) => {
    if (sent < total) progress(`Sending ${megabytes(sent)} of ${megabytes(total)}`, sent, total);
    else progress("The API checks every row");
  };
  onProgress(0, body.size);
  const headers = { "Content-Type": "text/csv" };
  const options = { method: "POST", headers, body, signal, onPause: progress, answerS: UPLOAD_S };
  const { batch_id, refused, rows } = await read("churn/batches", options, uploader(onProgress));
  const firstLine = lines.every((line, row) => line === lines[0] + row) ? lines[0] : undefined;
  batch = { id: batch_id, name, rows: lines.length, refused, listed: withLines(rows), firstLine };
  setAddress();
  await follow(signal);
}

// Refused rows with their lines in the file.
const withLines = (rows) => rows.map((one) => ({ ...one, line: prepared?.lines[one.row] ?? one.line }));

// Follow a batch to its end, and show its results.
async function follow(signal) {
  const { id, name } = batch;
  results = [];
  stage("run");
  put("name", name);
  say("stage", "Scoring");
  const started = performance.now();
  let expected = 0;
  for (let first = -1; ; await sleep(first ? 1 : 0.3, signal)) {
    const { status, total, done, failed } = await read(`churn/batches/${id}`, { signal, onPause: progress });
    const failures = failed ? `, ${number(failed)} failed` : "";
    progress(`Scored ${number(done)} of ${counted(total, "row")}${failures}`, done, total);
    expected = total;
    if (status === "Success") break;
    if (first < 0) first = done;
    const rate = (1000 * (done - first)) / (performance.now() - started);
    const leftS = Math.ceil((total - done) / rate);
    if (rate > 0) put("size", `${number(Math.round(rate))} rows per second, ${leftS} s left`);
  }
  progress("Fetching the results");
  const headers = { Accept: "application/x-ndjson" };
  const { body } = await send(`churn/batches/${id}/results`, { headers, signal, onPause: progress });
  const stream = body.pipeThrough(new TextDecoderStream()).getReader();
  const found = []; // whole, or no results
  let rest = "";
  let count = 0;
  for (let part; !(part = await stream.read()).done; ) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      const { row, probability, error } = JSON.parse(line);
      found[row] = error ?? probability;
      count++;
      await letDraw();
    }
  }
  if (count < expected) throw new TypeError("The results are not complete.");
  results = found;
  await summarise();
}

async function summarise() {
  const { threshold, name } = await readCard().catch(() => ({}));
  noun = name ? ` of ${name}` : "";
  const found = results.filter((one) => typeof one === "number");
  sorted = Float64Array.from(found).sort().reverse();
  counts = Array(BINS).fill(0);
  for (const p of sorted) counts[Math.min(Math.floor(p * BINS), BINS - 1)]++;
  const failed = results.filter((one) => typeof one === "string").length;
  put("name", batch.name);
  isPart = batch.refused + failed > 0;
  const left = [batch.refused && `${number(batch.refused)} refused`, failed && `${number(failed)} failed`];
  put("size", [`${counted(found.length, "row")} scored`, ...left].filter(Boolean).join(", "));
  setThreshold(threshold ?? 0.5);
  say("stage", `Done: ${$("size").textContent}`);
  await showResults();
}

function setThreshold(threshold) {
  $("threshold").value = threshold;
  $("threshold").setAttribute("aria-valuetext", percent(threshold));
  put("threshold-text", `Threshold: ${percent(threshold)}`);
  drawHistogram($("histogram"), counts, threshold);
  let [above, part, whole] = [0, 0, 0]; // 200,000 sums take a millisecond
  for (const p of sorted) {
    whole += p;
    if (p < threshold) continue;
    above++;
    part += p;
  }
  const note = above ? `${percent(part / above)} of them, if the model is calibrated` : "";
  define($("share"), [
    ["At or above", number(above), `${percent(above / (sorted.length || 1))} of ${isPart ? "the scored" : "all"} rows`],
    [`Expected cases${noun}`, cases(part), note],
    ["Share of all expected cases", percent(part / (whole || 1)), `of ${cases(whole)}`]]);
}

// 2.5 or 1,629
const cases = (sum) => number(sum < 9.95 ? Number(sum.toFixed(1)) : Math.round(sum));

// Write the download, and show the rows with the highest probabilities.
async function showResults() {
  const { firstLine, listed, name } = batch;
  const { table, lines, texts, hasCommas } = prepared ?? withoutFile(firstLine);
  const { delimiter = ",", header, start = "" } = table;
  const names = header.filter(isKept);
  const faults = new Map(listed.map(({ row, errors }) => [row, errors.map(named).join("; ")]));
  const scored = [csvLine([...names.map(asText), ...ADDED], delimiter)];
  for (const [row, text] of texts.entries()) {
    const result = results[row] ?? faults.get(row) ?? "Refused";
    const isScored = typeof result === "number";
    const added = isScored ? [String(result).replace(".", hasCommas ? "," : "."), ""] : ["", asText(result)];
    scored.push(`${text}${delimiter}${csvLine(added, delimiter)}`);
    await letDraw();
  }
  if (prepared) showTop(["Line", ...names], (row) => [number(lines[row]), ...splitLine(texts[row], delimiter)]);
  else showTop(firstLine ? ["Line", "Row"] : ["Row"], (row) => texts[row].split(",").map((one) => number(Number(one))));
  const link = $("download");
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(new Blob([start, scored.join("\r\n"), "\r\n"], { type: "text/csv" }));
  link.download = `${name.replace(/\.\w+$/, "")}-scored.csv`;
  show("join", !prepared);
  const hasLines = firstLine ? " line is the line in the file, from 1." : "";
  put("numbering", `In the download, row is the number of the row sent, from 0, as in the API.${hasLines}`);
  stage("done");
}

// In place of the file: the number of each row, and its line if that is known.
function withoutFile(firstLine) {
  const rows = Array.from({ length: Math.max(results.length, batch.rows) }, (_, row) => row);
  const texts = rows.map((row) => (firstLine ? `${firstLine + row},${row}` : String(row)));
  return { table: { header: firstLine ? ["line", "row"] : ["row"] }, lines: [], texts, hasCommas: false };
}

function showTop(head, cellsOf) {
  const least = sorted[Math.min(TOP, sorted.length) - 1];
  const top = [...results.keys()].filter((row) => Number(results[row]) >= least)
    .sort((one, other) => Number(results[other]) - Number(results[one])).slice(0, TOP);
  tabulate("top", ["Probability", ...head], top.map((row) => [percent(Number(results[row])), ...cellsOf(row)]));
}

const named = (fault) => `${fault.pointer.split("/")[2]}: ${faultText(fault)}`;

// New results replace those of an earlier download.
const isKept = (name) => ![...ADDED, "churn"].includes(name.trim());

// Without a value the end is unknown.
function progress(text, value = -1, most = 1) {
  put("run-text", text);
  put("size", "");
  $("bar").max = most || 1;
  if (value < 0) $("bar").removeAttribute("value");
  else $("bar").value = value;
}

const megabytes = (bytes) => `${number(bytes / 1e6, 2)} MB`;

// Rows at random within the training data, whose ranges the form has.
function makeSample() {
  const value = ({ name, type, categories, example }) => {
    const { min, max } = $(`f-${name}`);
    if (categories.length) return categories[Math.floor(Math.random() * categories.length)];
    return min ? (Number(min) + Math.random() ** 2 * (max - min)).toFixed(type === "integer" ? 0 : 3) : String(example);
  };
  const rows = Array.from({ length: 200 }, () => features.map(value));
  return [features.map(({ name }) => name), ...rows].map((row) => csvLine(row, ",")).join("\n");
}
