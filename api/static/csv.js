// CSV as spreadsheets write it: its dialect, its columns, and its rows as a stream. The rules are those of the API.

import { letDraw } from "./http.js";

/** @typedef {{file: File, encoding: string, start: string, delimiter: string, header: string[], places: Map<string, number>}} Table `start` is before the header */

const STEP = 32768; // characters that are split at once
const LONGEST_ROW = 65536; // characters
const QUOTED = /^ *"((?:[^"]|"")*)"(?!")/;
const OPEN = /^ *"(?:[^"]|"")*$/;
/** A number with a decimal comma, in a file whose delimiter is a semicolon. */
export const COMMA = /^[+-]?\d+,\d+(e[+-]?\d+)?$/i;
const RUN_BY_SPREADSHEETS = /^[=+\-@\t\r]/;
const NUMBER = /^[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?%?$|^[+-]$/i;

/** Find the dialect of a file and the columns of the features. @param {File} file @param {string[]} features @returns {Promise<Table>} */
export async function readTable(file, features) {
  const bytes = new Uint8Array(await file.slice(0, LONGEST_ROW).arrayBuffer());
  const mark = bytes.subarray(0, 2).join();
  const encoding = mark === "255,254" ? "utf-16le" : mark === "254,255" ? "utf-16be" : "utf-8";
  const text = new TextDecoder(encoding).decode(bytes);
  const [separatorLine, separator] = /^"?sep=(.)"?\r?\n/i.exec(text) ?? [""];
  const [firstLine] = text.trimStart().split("\n", 1);
  const delimiter = separator ?? [",", ";", "\t"].reduce((best, one) => (firstLine.split(one).length > firstLine.split(best).length ? one : best));
  const header = new Reader(delimiter).push(text.slice(separatorLine.length), file.size <= LONGEST_ROW)[0]?.cells ?? [];
  const names = header.map(squeeze);
  const places = new Map(features.map((name) => /** @type {[string, number]} */ ([name, names.indexOf(squeeze(name))])).filter(([, place]) => place >= 0));
  return { file, encoding, start: (encoding !== "utf-8" || mark === "239,187" ? "\ufeff" : "") + separatorLine, delimiter, header, places };
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
      throw new Error(`The file is not ${encoding.toUpperCase()} near line ${reader.line}: save it as CSV UTF-8.`);
    }
    for (let at = 0; at < text.length || (done && !at); at += STEP) {
      const rows = reader.push(text.slice(at, at + STEP), done && at + STEP >= text.length);
      toSkip -= rows.splice(0, toSkip).length;
      for (const { line, cells } of rows) {
        if (cells.splice(header.length).some((cell) => cell.trim())) {
          throw new Error(`Line ${line} has more cells than the header: quote a cell that contains the delimiter.`);
        }
        while (cells.length < header.length) cells.push("");
      }
      yield rows;
      await letDraw();
    }
  }
}

// Splits text into rows that are not blank; it keeps the beginning of a row whose end has not come.
class Reader {
  line = 0; // the last one that was split
  start = 0; // of the row
  cells = [];
  open = ""; // a cell whose quote is not closed
  rest = ""; // a line whose end has not come

  constructor(delimiter) { this.delimiter = delimiter; }

  push(text, isLast) {
    const lines = (this.rest + (isLast ? text.replace(/\u001a$/, "") : text)).split("\n");
    this.rest = isLast ? "" : lines.pop();
    const rows = [];
    for (const line of lines) {
      this.line++;
      this.start ||= this.line;
      let before = this.open && `${this.open}\n`;
      for (const piece of line.split(this.delimiter)) {
        const cell = before + piece;
        before = cell.includes('"') && OPEN.test(cell) ? cell + this.delimiter : "";
        if (!before) this.cells.push(cell);
      }
      this.open = before.slice(0, -1);
      if (this.open) continue;
      this.cells.push(this.cells.pop().replace(/\r$/, ""));
      const cells = this.cells.map((cell) => (cell.includes('"') ? cell.replace(QUOTED, (_, inner) => inner.replaceAll('""', '"')) : cell));
      if (cells.some((cell) => cell.trim())) rows.push({ line: this.start, cells });
      this.cells = [];
      this.start = 0;
    }
    if (this.open && isLast) throw new Error(`The quote of the row at line ${this.start} is not closed.`);
    if (this.open.length + this.rest.length > LONGEST_ROW) throw new Error(`The row at line ${this.start || this.line + 1} is too long: close every quote.`);
    return rows;
  }
}

/** A cell that a spreadsheet shows and does not run; numbers stay numbers. @param {string} cell */
export const asText = (cell) => (RUN_BY_SPREADSHEETS.test(cell) && !NUMBER.test(cell) ? `'${cell}` : cell);

/** A line of CSV, without its end. @param {string[]} cells @param {string} delimiter */
export const csvLine = (cells, delimiter) =>
  cells.map((cell) => (/["\r\n]/.test(cell) || cell.includes(delimiter) ? `"${cell.replaceAll('"', '""')}"` : cell)).join(delimiter);

/** The cells of a line. @param {string} line @param {string} delimiter @returns {string[]} */
export const splitLine = (line, delimiter) => new Reader(delimiter).push(line, true)[0].cells;
