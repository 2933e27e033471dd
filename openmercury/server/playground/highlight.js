// Colours for code: text in, runs of { kind, text } out. Never touches the page, so nothing can be read as markup.

const words = (text) => new Set(text.split(" "));

const PYTHON = words(
  "and as assert async await break case class continue def del elif else except finally for from global if import in is " +
    "lambda match nonlocal not or pass raise return try while with yield",
);
const C_LIKE = words(
  "abstract as async await auto bool boolean break byte case catch char class const constexpr continue debugger default " +
    "defer delete do double dyn else enum export extends extern final finally float fn for from func function go goto if impl " +
    "implements import in instanceof int interface internal is let long loop match mod move mut namespace new operator override " +
    "package private protected pub public range readonly ref return select short signed sizeof static struct super switch " +
    "template this throw throws trait try type typedef typeof union unsafe unsigned use using val var virtual void volatile " +
    "when where while with yield",
);
const SHELL = words("case do done elif else esac export fi for function if in local return then until while");
const SQL = words(
  "all alter and as asc between by case create delete desc distinct drop else end exists from full group having in index inner " +
    "insert into is join key left like limit not null offset on or order outer primary references right select set table then " +
    "union unique update values view when where with",
);
const CONSTANTS = words("True False None true false null undefined nil NaN Infinity self this cls NULL nullptr");

const LANGUAGES = {
  python: { keywords: PYTHON, line: "#", triple: true },
  c: { keywords: C_LIKE, line: "//", block: true, chars: true },
  js: { keywords: C_LIKE, line: "//", block: true, backtick: true },
  shell: { keywords: SHELL, line: "#" },
  sql: { keywords: SQL, line: "--", block: true, fold: true },
  json: { keywords: new Set() },
};
// A fence without a name most often holds what this model writes most: Python.
const NAMES = {
  "": "python", py: "python", python: "python", python3: "python", pycon: "python",
  js: "js", javascript: "js", jsx: "js", ts: "js", tsx: "js", typescript: "js", go: "js", golang: "js",
  c: "c", h: "c", cpp: "c", "c++": "c", cc: "c", java: "c", rust: "c", rs: "c", cs: "c", csharp: "c", kotlin: "c", kt: "c",
  scala: "c", swift: "c", php: "c", dart: "c", zig: "c",
  sh: "shell", bash: "shell", shell: "shell", zsh: "shell", console: "shell", yaml: "shell", toml: "shell",
  sql: "sql", json: "json",
};

/** Runs of `code`; joined, their texts are `code` again. An unknown language is one plain run. */
export function highlight(code, language) {
  const rules = LANGUAGES[NAMES[language.toLowerCase()]];
  if (!rules) return code ? [{ kind: "", text: code }] : [];
  const runs = [];
  const pattern = rules.pattern ?? (rules.pattern = compile(rules));
  let end = 0;
  for (const match of code.matchAll(pattern)) {
    if (match.index > end) runs.push({ kind: "", text: code.slice(end, match.index) });
    end = match.index + match[0].length;
    runs.push({ kind: kindOf(match, code, end, rules), text: match[0] });
  }
  if (end < code.length) runs.push({ kind: "", text: code.slice(end) });
  return runs;
}

/** A string or comment without its end goes on to the end of its line or of the code: code is shown while it is written. */
function compile({ line, block, triple, backtick, chars }) {
  const prefix = triple ? "[rbfuRBFU]{0,2}" : "";
  const comments = [line && `${line}[^\\n]*`, block && "/\\*[^]*?(?:\\*/|$)"].filter(Boolean);
  const strings = [
    triple && `${prefix}(?:"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$))`,
    backtick && "`(?:[^`\\\\]|\\\\[^])*(?:`|$)",
    `${prefix}"(?:[^"\\\\\\n]|\\\\.)*"?`,
    chars ? `'(?:[^'\\\\\\n]|\\\\.[^'\\n]*)'` : `${prefix}'(?:[^'\\\\\\n]|\\\\.)*'?`, // a lone ' may be Rust's lifetime
  ].filter(Boolean);
  return new RegExp(
    [
      `(?<comment>${comments.join("|") || "(?!)"})`,
      `(?<string>${strings.join("|")})`,
      "(?<number>\\b(?:0[xX][\\da-fA-F_]+|0[bB][01_]+|\\d[\\d_]*(?:\\.\\d+)?(?:[eE][+-]?\\d+)?)\\b)",
      "(?<decorator>@[\\p{L}_][\\p{L}\\p{N}_.]*)",
      "(?<word>[\\p{L}_$][\\p{L}\\p{N}_$]*)",
    ].join("|"),
    "gu",
  );
}

function kindOf(match, code, end, rules) {
  const { comment, string, number, decorator, word } = match.groups;
  if (comment !== undefined) return "comment";
  if (string !== undefined) return "string";
  if (number !== undefined) return "number";
  if (decorator !== undefined) return "decorator";
  if (rules.keywords.has(rules.fold ? word.toLowerCase() : word)) return "keyword";
  if (CONSTANTS.has(word)) return "constant";
  return /^\s*\(/.test(code.slice(end, end + 4)) ? "call" : "";
}
