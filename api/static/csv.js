// CSV as spreadsheets write it: its dialect, its columns, and its rows as a stream. The rules are those of the API.

import { letDraw } from "./http.js";

/** @typedef {{file: File, encoding: string, hasMark: boolean, hasSeparatorLine: boolean, delimiter: string, header: string[], places: Map<string, number>}} Table */

const START_BYTES = 65536;
const STEP = 32768; // characters that are split at once
const LONGEST_ROW = 65536; // characters
const LONGEST_CELL = 1000; // that is sent; no feature has as many
const COMMA = /^[+-]?\d+,\d+(e[+-]?\d+)?$/i;
const RUN_BY_SPREADSHEETS = /^[=+\-@\t\r]/;
const NUMBER = /^[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?%?$|^[+-]$/i;

/** Find the dialect of a file and the columns of the features. @param {File} file @param {string[]} features @returns {Promise<Table>} */
export async function readTable(file, features) {
  const bytes = new Uint8Array(await file.slice(0, START_BYTES).arrayBuffer());
  const start = bytes.subarray(0, 2).join();
  const encoding = start === "255,254" ? "utf-16le" : start === "254,255" ? "utf-16be" : "utf-8";
  const text = new TextDecoder(encoding).decode(bytes);
  const separator = /^"?sep=(.)"?\r?\n/i.exec(text);
  const tables = (separator ? [separator[1]] : [",", ";", "\t"]).map((delimiter) => {
    const rows = new Reader(delimiter).push(text.slice(separator?.[0].length), file.size <= START_BYTES);
    const header = rows.find(({ cells }) => !isBlank(cells))?.cells ?? [];
    const names = header.map((name) => name.trim().toLowerCase());
    const places = new Map(features.map((name) => [name, names.indexOf(name.toLowerCase())]));
    for (const [name, place] of places) if (place < 0) places.delete(name);
    return { file, encoding, hasMark: encoding !== "utf-8" || start === "239,187", hasSeparatorLine: !!separator, delimiter, header, places };
  });
  return tables.reduce((best, one) => (one.places.size > best.places.size ? one : best));
}

/** The column that a missing feature may be: equal but for blanks, dashes and underscores. @param {string} feature @param {string[]} header */
export function similar(feature, header) {
  const squeeze = (name) => name.toLowerCase().replace(/[^a-z0-9]/g, "");
  return header.find((name) => squeeze(name) === squeeze(feature));
}

/** The rows that are not blank, after the header, a part of the file at a time; the error of a bad row has its line. @param {Table} table @param {AbortSignal} signal */
export async function* readRows({ file, encoding, delimiter, header, hasSeparatorLine }, signal) {
  const stream = file.stream().getReader();
  const decoder = new TextDecoder(encoding, { fatal: true });
  const reader = new Reader(delimiter);
  let toSkip = hasSeparatorLine ? 2 : 1;
  for (let isLast = false; !isLast; ) {
    const { done, value } = await stream.read();
    signal.throwIfAborted();
    isLast = done;
    let text;
    try {
      text = decoder.decode(value, { stream: !done });
    } catch {
      throw new Error(`The file is not ${encoding.toUpperCase()} near line ${reader.line}: save it as CSV UTF-8.`);
    }
    for (let at = 0; at < text.length || (done && !at); at += STEP) {
      const rows = reader.push(text.slice(at, at + STEP), done && at + STEP >= text.length).filter(({ cells }) => !isBlank(cells));
      toSkip -= rows.splice(0, toSkip).length;
      for (const { line, cells } of rows) {
        if (!isBlank(cells.splice(header.length))) {
          throw new Error(`Line ${line} has more cells than the header: put a cell that contains the delimiter into double quotes.`);
        }
        while (cells.length < header.length) cells.push("");
      }
      yield rows;
      await letDraw();
    }
  }
}

const isBlank = (cells) => cells.every((cell) => cell.trim() === "");

// Splits text into rows; it keeps the beginning of a row whose end has not come.
class Reader {
  rest = "";
  line = 1;

  constructor(delimiter) { this.delimiter = delimiter; }

  push(text, isLast) {
    text = this.rest + (isLast ? text.replace(/\u001a$/, "") : text);
    const rows = [];
    let at = 0;
    while (at < text.length) {
      let end = text.indexOf("\n", at);
      if (end < 0) {
        if (!isLast) break;
        end = text.length;
      }
      const record = text.slice(at, end);
      let cells;
      let lines = 1;
      if (record.includes('"')) {
        const quoted = this.readQuoted(text, at, isLast);
        if (!quoted) break;
        ({ cells, end } = quoted);
        lines = text.slice(at, end).split("\n").length;
      } else cells = record.replace(/\r$/, "").split(this.delimiter);
      rows.push({ line: this.line, cells });
      this.line += lines;
      at = end + 1;
    }
    this.rest = text.slice(at);
    if (this.rest.length > LONGEST_ROW) throw new Error(`The row at line ${this.line} is longer than ${LONGEST_ROW} characters: close every quote.`);
    return rows;
  }

  // The cells of a row with quotes, and its end; null if the end has not come.
  readQuoted(text, at, isLast) {
    for (const cells = []; ; at++) {
      let cell = "";
      while (text[at] === " ") at++;
      if (text[at] === '"') {
        do {
          const quote = text.indexOf('"', at + 1);
          if (quote < 0) {
            if (isLast) throw new Error(`The quote of the row at line ${this.line} is not closed.`);
            return null;
          }
          cell += text.slice(at + 1, quote);
          at = quote + 1;
          if (text[at] === '"') cell += '"';
        } while (text[at] === '"');
      }
      const from = at;
      while (at < text.length && text[at] !== this.delimiter && text[at] !== "\n") at++;
      if (at === text.length && !isLast) return null;
      const isEnd = at === text.length || text[at] === "\n";
      cells.push(cell + text.slice(from, isEnd && at > from && text[at - 1] === "\r" ? at - 1 : at));
      if (isEnd) return { cells, end: at };
    }
  }
}

/** A number with a decimal comma, in a file whose delimiter is a semicolon. @param {string} cell */
export const hasComma = (cell) => COMMA.test(cell);

/** The cell as it is sent: a shortened text stays invalid. @param {string} cell @param {boolean} isSemicolon */
export function sentCell(cell, isSemicolon) {
  cell = cell.trim();
  if (cell.length > LONGEST_CELL) cell = `${cell.slice(0, LONGEST_CELL)}…`;
  return isSemicolon && COMMA.test(cell) ? cell.replace(",", ".") : cell;
}

/** A cell that a spreadsheet shows and does not run; numbers stay numbers. @param {string} cell */
export const asText = (cell) => (RUN_BY_SPREADSHEETS.test(cell) && !NUMBER.test(cell) ? `'${cell}` : cell);

/** A line of CSV. @param {string[]} cells @param {string} delimiter */
export const csvLine = (cells, delimiter) =>
  `${cells.map((cell) => (/["\r\n]/.test(cell) || cell.includes(delimiter) ? `"${cell.replaceAll('"', '""')}"` : cell)).join(delimiter)}\r\n`;
