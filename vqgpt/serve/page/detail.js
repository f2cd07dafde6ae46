// What is known of the chosen image: its likelihood, the bits of each token, its nearest training row, its codes.

import { post } from "./api.js";
import { sourceOf } from "./gallery.js";

const element = (id) => document.getElementById(id);

/** Words for an image: where it comes from, and what it shows. */
export function captionOf(image) {
  const classes = image.classes.join(", ");
  const origin = image.origin ?? `image ${image.number} of seed ${image.seed}`;
  return classes ? `${classes}: ${origin}` : origin;
}

export async function describe(image, words) {
  element("caption").textContent = captionOf(image);
  showTokens(image.codes);
  element("likelihood").textContent = "";
  element("nearest-figure").hidden = true;
  element("heat-figure").hidden = true;
  const [scores, nearest] = await Promise.all([
    post("/api/score", { codes: [image.codes], classes: words }),
    post("/api/nearest", { codes: image.codes }),
  ]);
  element("likelihood").textContent = `The GPT finds it likely at ${scores.bits_per_token[0].toFixed(3)} bits per token.`;
  showHeat(scores.bits[0]);
  element("nearest").src = sourceOf(nearest.image);
  element("nearest").alt = `Training row ${nearest.row}`;
  const classes = nearest.image.classes.length ? ` (${nearest.image.classes.join(", ")})` : "";
  const copy = nearest.differing_tokens === 0 ? ": a copy" : "";
  element("nearest-caption").textContent =
    `Nearest training row: ${nearest.split}/${nearest.row}${classes}, which differs in ${nearest.differing_tokens} of ${nearest.tokens} tokens${copy}`;
  element("nearest-figure").hidden = false;
}

function showTokens(codes) {
  element("tokens").replaceChildren(...codes.map((row) => {
    const line = document.createElement("tr");
    line.append(...row.map((code) => {
      const cell = document.createElement("td");
      cell.textContent = code;
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
