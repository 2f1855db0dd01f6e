// CSV as spreadsheets write it: its dialect, its columns, and its rows as a stream. The rules are those of the API
// (api/csv_rows.py), but for the names of columns blanks and signs do not matter either.

import { number } from "./dom.js";
import { letDraw } from "./http.js";

/**
 * @typedef {{
 *   file: File, encoding: string, start: string, delimiter: string, header: string[], places: Map<string, number>
 * }} Table `start` is before the header
 */

const STEP = 32768; // characters that are split at once
const LONGEST_ROW = 65536; // characters, line ends included
const MOST_COLUMNS = 500;
const SEPARATOR = /^[\r\n]*"?sep=([^"\s]|\t)"?(\r\n|\r|\n)/i;
const QUOTED = /^ *"((?:[^"]|"")*)"(?!")/;
const OPEN = /^ *"(?:[^"]|"")*$/;
const LINE_END = /(\r\n|\r|\n)/;
const SURE_LINE_END = /(\r\n|\r(?!$)|\n)/; // the second half of a last \r\n may follow
/** A number with a decimal comma, in a file whose delimiter is a semicolon. */
export const COMMA = /^[+-]?\d+,\d+(e[+-]?\d+)?$/i;
const RUN_BY_SPREADSHEETS = /^[=+\-@\t\r]/;
const NUMBER = /^[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?%?$|^[+-]$/i;
const UTF_8 = "Save it as CSV UTF-8.";

/**
 * Find the dialect of a file and the columns of the features.
 * @param {File} file
 * @param {string[]} features
 * @returns {Promise<Table>}
 */
export async function readTable(file, features) {
  const bytes = new Uint8Array(await file.slice(0, LONGEST_ROW).arrayBuffer());
  const mark = bytes.subarray(0, 2).join();
  const encoding = mark === "255,254" ? "utf-16le" : mark === "254,255" ? "utf-16be" : "utf-8";
  if (encoding === "utf-8" && bytes.includes(0)) throw new Error(`This is not a file of text. ${UTF_8}`);
  const text = new TextDecoder(encoding).decode(bytes);
  const [separatorLine, separator] = SEPARATOR.exec(text) ?? [""];
  const names = new Map(features.map((name) => [squeeze(name), name]));
  const headerIn = (delimiter) =>
    new Reader(delimiter, true).push(text.slice(separatorLine.length), file.size <= LONGEST_ROW)[0]?.cells ?? [];
  const found = (cells) => cells.filter((cell) => names.has(squeeze(cell))).length;
  const headers = (separator ? [separator] : [",", ";", "\t"]).map((one) => ({ one, cells: headerIn(one) }));
  const best = headers.reduce((first, next) => (found(next.cells) > found(first.cells) ? next : first));
  const { one: delimiter, cells: header } = best;
  if (!header.length) throw new Error(`The file is empty, or has no header within ${number(LONGEST_ROW)} characters.`);
  if (header.length > MOST_COLUMNS) {
    throw new Error(`The header has ${number(header.length)} columns, and ${MOST_COLUMNS} are allowed.`);
  }
  const start = (encoding !== "utf-8" || mark === "239,187" ? "\ufeff" : "") + separatorLine;
  return { file, encoding, start, delimiter, header, places: findPlaces(header, names) };
}

// By feature its place in the header.
function findPlaces(header, names) {
  const places = new Map();
  for (const [place, cell] of header.entries()) {
    const name = names.get(squeeze(cell));
    if (!name) continue;
    if (places.has(name)) {
      const columns = `${places.get(name) + 1} and ${place + 1}`;
      throw new Error(`Columns ${columns} of the header are both ${name}: delete one of them.`);
    }
    places.set(name, place);
  }
  return new Map([...names.values()].filter((name) => places.has(name)).map((name) => [name, places.get(name)]));
}

// "Customer-Age" and "customer age" are Customer_Age.
const squeeze = (name) => name.toLowerCase().replace(/[^\p{L}\p{N}]/gu, "");

/** The rows after the header, a part of the file at a time. @param {Table} table @param {AbortSignal} signal */
export async function* readRows({ file, encoding, delimiter, header, start }, signal) {
  const stream = file.stream().getReader();
  const decoder = new TextDecoder(encoding, { fatal: true });
  const reader = new Reader(delimiter);
  let toSkip = start.length > 1 ? 2 : 1; // a line `sep=;`, and the header
  for (let isLast = false; !isLast; ) {
    const { done, value } = await stream.read();
    signal.throwIfAborted();
    isLast = done;
    let text;
    try {
      text = decoder.decode(value, { stream: !done });
    } catch {
      throw new Error(`${await undecodable(file, encoding)} ${UTF_8}`);
    }
    for (let at = 0; at < text.length || (done && !at); at += STEP) {
      const rows = reader.push(text.slice(at, at + STEP), done && at + STEP >= text.length);
      toSkip -= rows.splice(0, toSkip).length;
      for (const { line, cells } of rows) {
        if (cells.splice(header.length).some((cell) => cell.trim())) {
          const remedy = "put a cell that contains the delimiter in quotes";
          throw new Error(`Line ${number(line)} has more cells than the header: ${remedy}.`);
        }
        while (cells.length < header.length) cells.push("");
      }
      yield rows;
      await letDraw();
    }
  }
}

// Tell where a file is not encoded as it should be.
async function undecodable(file, encoding) {
  if (encoding !== "utf-8") return "The file is not UTF-16, although it begins like it.";
  const stream = file.stream().getReader();
  const decoder = new TextDecoder(encoding, { fatal: true });
  let line = 1;
  for (let part; !(part = await stream.read()).done; ) {
    for (let at = 0, end = 0; at < part.value.length; at = end) {
      end = part.value.indexOf(10, at) + 1 || part.value.length;
      try {
        decoder.decode(part.value.subarray(at, end), { stream: true });
      } catch {
        return `Line ${number(line)} is not UTF-8.`;
      }
      if (part.value[end - 1] === 10) line++;
    }
  }
  return "The file is not UTF-8.";
}

// Splits text into rows that are not blank; it keeps the beginning of a row whose end has not come.
class Reader {
  line = 0; // the last one that was split
  start = 0; // of the row
  length = 0; // of the row
  hasHeader = false;
  cells = [];
  open = ""; // a cell whose quote is not closed
  rest = ""; // a line whose end has not come

  constructor(delimiter, isGuess = false) {
    this.delimiter = delimiter;
    this.isGuess = isGuess; // of the delimiter: only the header is right
  }

  push(text, isLast) {
    const whole = this.rest + text;
    const parts = (isLast ? whole.replace(/\u001a$/, "") : whole).split(isLast ? LINE_END : SURE_LINE_END);
    if (isLast) parts.push("");
    this.rest = isLast ? "" : parts.pop();
    const rows = [];
    for (let at = 0; at < parts.length; at += 2) {
      const [line, end] = [parts[at], parts[at + 1]];
      this.line++;
      this.start ||= this.line;
      this.length += line.length + end.length;
      this.limit(this.length);
      let before = this.open;
      for (const piece of line.split(this.delimiter)) {
        const cell = before + piece;
        before = cell.includes('"') && OPEN.test(cell) ? cell + this.delimiter : "";
        if (!before) this.cells.push(cell);
      }
      this.open = before && before.slice(0, -1) + end;
      if (this.open) continue;
      const cells = this.cells.map((cell) => (cell.includes('"') ? this.unquote(cell) : cell));
      if (cells.some((cell) => cell.trim())) {
        rows.push({ line: this.start, cells });
        this.hasHeader = true;
      }
      this.cells = [];
      this.start = this.length = 0;
      if (this.isGuess && this.hasHeader) return rows;
    }
    if (this.open && isLast && !this.isGuess) {
      throw new Error(`The quote of the row at line ${number(this.start)} is not closed.`);
    }
    this.limit(this.length + this.rest.length);
    return rows;
  }

  limit(length) {
    if (length <= LONGEST_ROW || this.isGuess) return;
    const line = number(this.start || this.line + 1);
    throw new Error(`The row at line ${line} is longer than ${number(LONGEST_ROW)} characters: close every quote.`);
  }

  unquote(cell) {
    const quoted = QUOTED.exec(cell);
    if (!quoted) return cell;
    if (this.hasHeader && quoted[0].length < cell.length) {
      const remedy = "write a quote within a cell twice";
      throw new Error(`The row at line ${number(this.start)} has text after a closing quote: ${remedy}.`);
    }
    return quoted[1].replaceAll('""', '"') + cell.slice(quoted[0].length);
  }
}

/** A cell that a spreadsheet shows and does not run; numbers stay numbers. @param {string} cell */
export const asText = (cell) => (RUN_BY_SPREADSHEETS.test(cell) && !NUMBER.test(cell) ? `'${cell}` : cell);

/** A line of CSV, without its end. @param {string[]} cells @param {string} delimiter */
export const csvLine = (cells, delimiter) =>
  cells.map((cell) => (cell.includes(delimiter) || /["\r\n]/.test(cell) ? quote(cell) : cell)).join(delimiter);

const quote = (cell) => `"${cell.replaceAll('"', '""')}"`;

/** The cells of a line. @param {string} line @param {string} delimiter @returns {string[]} */
export const splitLine = (line, delimiter) => new Reader(delimiter, true).push(line, true)[0]?.cells ?? [];
