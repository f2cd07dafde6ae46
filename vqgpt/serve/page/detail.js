// What is known of the chosen image: its likelihood, the bits of each token, its nearest training row, its codes.

import { post } from "./api.js";
import { sourceOf } from "./gallery.js";

const element = (id) => document.getElementById(id);

/** Words for an image: where it comes from, and what it shows. */
export function captionOf(image) {
  const classes = image.classes.join(", ");
  const origin = image.origin ?? `${image.completes ? "completion" : "image"} ${image.number} of seed ${image.seed}`;
  const settings = image.temperature === undefined ? "" : `, temperature ${image.temperature}`;
  return `${classes ? `${classes}: ` : ""}${origin}${settings}`;
}

/** Show what is known of an image; what comes when it is no longer the chosen one is left out. */
export async function describe(image, words, asClass, isChosen) {
  element("caption").textContent = captionOf(image);
  showTokens(image.codes);
  element("likelihood").textContent = "";
  element("nearest-figure").hidden = true;
  element("heat-figure").hidden = true;
  await Promise.all([showScore(image, words, asClass, isChosen), showNearest(image, isChosen)]);
}

async function showScore(image, words, asClass, isChosen) {
  const scores = await post("/api/score", { codes: [image.codes], classes: words });
  if (!isChosen()) return;
  element("likelihood").textContent = `The GPT needs ${scores.bits_per_token[0].toFixed(3)} bits per token for it${asClass}: the fewer, the likelier.`;
  showHeat(scores.bits[0]);
  showTokens(image.codes, scores.bits[0]);
}

async function showNearest(image, isChosen) {
  const nearest = await post("/api/nearest", { codes: image.codes });
  if (!isChosen()) return;
  element("nearest").src = sourceOf(nearest.image);
  element("nearest").alt = `Training row ${nearest.row}`;
  const classes = nearest.image.classes.length ? ` (${nearest.image.classes.join(", ")})` : "";
  const itself = image.origin === originOfRow(nearest.row, nearest.split);
  const copy = nearest.differing_tokens ? "" : itself ? ": the row itself" : ": a copy";
  const view = nearest.view === "identity" ? "" : `, view ${nearest.view}`;
  element("nearest-caption").textContent =
    `Nearest training row: ${nearest.split}/${nearest.row}${classes}${view}, which differs in ${nearest.differing_tokens} of ${nearest.tokens} tokens${copy}`;
  element("nearest-figure").hidden = false;
}

/** Words for a row of the token cache. */
export function originOfRow(row, split) {
  return `row ${row} of ${split}`;
}

/** The codes, with the bits of each below it once they are known. */
function showTokens(codes, bits) {
  element("tokens").replaceChildren(...codes.map((row, y) => {
    const line = document.createElement("tr");
    line.append(...row.map((code, x) => {
      const cell = document.createElement("td");
      const small = document.createElement("small");
      small.textContent = bits ? `${bits[y][x].toFixed(1)} bits` : "";
      cell.append(String(code), document.createElement("br"), small);
      return cell;
    }));
    return line;
  }));
}

function showHeat(bits) {
  const canvas = element("heat");
  [canvas.height, canvas.width] = [bits.length, bits[0].length];
  const most = Math.max(...bits.flat(), 1e-9);
  const pen = canvas.getContext("2d");
  bits.forEach((row, y) => row.forEach((value, x) => {
    const level = Math.round((255 * value) / most);
    pen.fillStyle = `rgb(${level}, ${Math.round(level * 0.75)}, ${Math.round(level * 0.35)})`;
    pen.fillRect(x, y, 1, 1);
  }));
  canvas.setAttribute("aria-label", `Bits of each token, up to ${most.toFixed(1)}`);
  element("heat-figure").hidden = false;
}
