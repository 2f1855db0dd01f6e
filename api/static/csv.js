// CSV as spreadsheets write it: its dialect, its columns, and its rows as a stream. The rules are those of the API.

/** @typedef {{line: number, cells: string[]}} Row */
/** @typedef {{file: File, encoding: string, hasMark: boolean, hasSeparatorLine: boolean, delimiter: string, header: string[], places: Map<string, number>}} Table */

const START_BYTES = 65536;
const LONGEST_ROW = 65536; // characters
const LONGEST_CELL = 1000; // that is sent; no feature has as many
const COMMA = /^[+-]?\d+,\d+(e[+-]?\d+)?$/i;
const RUN_BY_SPREADSHEETS = /^[=+\-@\t\r]/;
const NUMBER = /^[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?%?$|^[+-]$/i;

/** Find the dialect of a file and the columns of the features. @param {File} file @param {string[]} features @returns {Promise<Table>} */
export async function readTable(file, features) {
  const bytes = new Uint8Array(await file.slice(0, START_BYTES).arrayBuffer());
  const [first, second] = bytes;
  const encoding = first === 0xff && second === 0xfe ? "utf-16le" : first === 0xfe && second === 0xff ? "utf-16be" : "utf-8";
  const hasMark = encoding !== "utf-8" || (first === 0xef && second === 0xbb);
  const text = new TextDecoder(encoding).decode(bytes);
  const separator = /^"?sep=(.)"?\r?\n/i.exec(text);
  const candidates = separator ? [separator[1]] : [",", ";", "\t"];
  const tables = candidates.map((delimiter) => {
    const reader = new Reader(delimiter);
    const rows = reader.push(separator ? text.slice(separator[0].length) : text, file.size <= START_BYTES);
    const header = rows.find(({ cells }) => !isBlank(cells))?.cells ?? [];
    return { file, encoding, hasMark, hasSeparatorLine: !!separator, delimiter, header, places: findPlaces(header, features) };
  });
  return tables.reduce((best, one) => (one.places.size > best.places.size ? one : best));
}

function findPlaces(header, features) {
  const plain = header.map((name) => name.trim().toLowerCase());
  const places = features.map((name) => /** @type {[string, number]} */ ([name, plain.indexOf(name.toLowerCase())]));
  return new Map(places.filter(([, place]) => place >= 0));
}

/** The column that a missing feature may be: equal but for blanks, dashes and underscores. @param {string} feature @param {string[]} header */
export function similar(feature, header) {
  const squeeze = (name) => name.toLowerCase().replace(/[^a-z0-9]/g, "");
  return header.find((name) => squeeze(name) === squeeze(feature));
}

/**
 * The rows that are not blank, after the header, a part of the file at a time.
 * @param {Table} table
 * @param {(bytes: number) => void} onRead
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<Row[]>}
 * @throws {Error} with the line and the remedy
 */
export async function* readRows(table, onRead, signal) {
  const stream = table.file.stream().getReader();
  const decoder = new TextDecoder(table.encoding, { fatal: true });
  const reader = new Reader(table.delimiter);
  const width = table.header.length;
  let toSkip = table.hasSeparatorLine ? 2 : 1; // rows before the first customer
  let read = 0;
  for (let isLast = false; !isLast; ) {
    const { done, value } = await stream.read();
    signal.throwIfAborted();
    isLast = done;
    read += value?.length ?? 0;
    let text;
    try {
      text = decoder.decode(value, { stream: !done });
    } catch {
      throw new Error(`The file is not ${table.encoding.toUpperCase()} near line ${reader.line}: save it as CSV UTF-8.`);
    }
    let rows = reader.push(text, isLast).filter(({ cells }) => !isBlank(cells));
    const skipped = Math.min(toSkip, rows.length);
    toSkip -= skipped;
    rows = rows.slice(skipped);
    for (const row of rows) {
      if (row.cells.length > width && !isBlank(row.cells.slice(width))) {
        throw new Error(`Line ${row.line} has ${row.cells.length} cells, and the header has ${width}: put a cell that contains the delimiter into double quotes.`);
      }
      row.cells.length = Math.min(row.cells.length, width);
      while (row.cells.length < width) row.cells.push("");
    }
    onRead(read);
    yield rows;
  }
}

const isBlank = (cells) => cells.every((cell) => cell === "" || cell.trim() === "");

// Splits text into rows; it keeps the beginning of a row whose end has not come.
class Reader {
  constructor(delimiter) {
    this.delimiter = delimiter;
    this.rest = "";
    this.line = 1;
  }

  push(text, isLast) {
    text = this.rest + text;
    if (isLast) text = text.replace(/\u001a$/, "");
    const rows = [];
    let at = 0;
    while (at < text.length) {
      let end = text.indexOf("\n", at);
      if (end < 0) {
        if (!isLast) break;
        end = text.length;
      }
      let record = text.slice(at, end);
      let cells;
      let lines = 1;
      if (record.includes('"')) {
        const quoted = this.readQuoted(text, at, isLast);
        if (!quoted) break;
        ({ cells, end } = quoted);
        lines += text.slice(at, end).split("\n").length - 1;
      } else {
        if (record.endsWith("\r")) record = record.slice(0, -1);
        cells = record.split(this.delimiter);
      }
      rows.push({ line: this.line, cells });
      this.line += lines;
      at = end + 1;
    }
    this.rest = text.slice(at);
    if (this.rest.length > LONGEST_ROW) throw new Error(`The row at line ${this.line} is longer than ${LONGEST_ROW} characters: close every quote.`);
    return rows;
  }

  readQuoted(text, at, isLast) {
    const cells = [];
    for (;;) {
      while (text[at] === " ") at++;
      let cell = "";
      if (text[at] === '"') {
        for (at++; ; ) {
          const quote = text.indexOf('"', at);
          if (quote < 0) {
            if (isLast) throw new Error(`The quote of the row at line ${this.line} is not closed.`);
            return null;
          }
          cell += text.slice(at, quote);
          at = quote + 1;
          if (text[at] !== '"') break;
          cell += '"';
          at++;
        }
      }
      let end = at;
      while (end < text.length && text[end] !== this.delimiter && text[end] !== "\n") end++;
      if (end === text.length && !isLast) return null;
      const isEnd = end === text.length || text[end] === "\n";
      cells.push(cell + text.slice(at, isEnd && text[end - 1] === "\r" ? end - 1 : end));
      if (isEnd) return { cells, end };
      at = end + 1;
    }
  }
}

/** A number with a decimal comma, in a file whose delimiter is a semicolon. @param {string} cell */
export const hasComma = (cell) => COMMA.test(cell);

/** The cell as it is sent: a shortened text stays invalid. @param {string} cell @param {boolean} hasCommas */
export function sentCell(cell, hasCommas) {
  cell = cell.trim();
  if (cell.length > LONGEST_CELL) cell = `${cell.slice(0, LONGEST_CELL)}…`;
  return hasCommas && COMMA.test(cell) ? cell.replace(",", ".") : cell;
}

/** A cell that a spreadsheet shows and does not run; numbers stay numbers. @param {string} cell */
export const asText = (cell) => (RUN_BY_SPREADSHEETS.test(cell) && !NUMBER.test(cell) ? `'${cell}` : cell);

/** A line of CSV. @param {string[]} cells @param {string} delimiter */
export const csvLine = (cells, delimiter) =>
  `${cells.map((cell) => (/["\r\n,;\t]/.test(cell) || cell.includes(delimiter) ? `"${cell.replaceAll('"', '""')}"` : cell)).join(delimiter)}\r\n`;
