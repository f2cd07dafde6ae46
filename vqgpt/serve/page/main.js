// The page: settings, drawing, and the chosen image.

import { get, post, stream } from "./api.js";
import { captionOf, describe, originOfRow } from "./detail.js";
import { Gallery } from "./gallery.js";
import { Painting } from "./painting.js";

const TEMPERATURES = [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2];
const COMPLETIONS = 8;
const LARGEST_SIDE = 1024; // pixels of an image that is sent; larger ones are made smaller here
const element = (id) => document.getElementById(id);

const facts = await get("/api/facts").catch((error) => {
  say(`the server does not answer: ${error.message}`);
  throw error;
});
let palette = [];
let drawing = null; // what stops the drawing under way
let chosen = null;
const painting = new Painting(facts.grid, (marked) => {
  element("complete").disabled = !chosen || marked === 0;
});

function setUp() {
  document.title = `${facts.name}: vqgpt serve`;
  element("title").textContent = facts.name;
  const order = facts.any_order ? "any order" : `${facts.order} order`;
  element("about").textContent =
    `${facts.dataset}: ${facts.image_size.join(" x ")} pixels, ${facts.grid.join(" x ")} of ${facts.codebook_size} codes, drawn in ${order}.`;
  element("sees").textContent = facts.any_order
    ? "This GPT sees all that is kept."
    : `This GPT draws in ${facts.order} order: it sees what is kept before a code, and nothing after it.`;
  const seen = facts.classes_seen.map((number) => [`number:${number}`, facts.classes[number]]);
  const choices = [["", seen.length ? "all, in turn" : "this GPT knows no classes"], ...seen];
  if (seen.length && facts.knows_unlabelled) choices.push(["number:none", "without a class"]);
  element("classes").replaceChildren(...choices.map(([value, text]) => new Option(text, value, value === "", value === "")));
  element("classes").disabled = !seen.length;
  element("cfg_scale").disabled = !facts.can_be_guided;
  element("order-label").hidden = !facts.any_order;
  document.documentElement.style.setProperty("--ratio", `${facts.grid[1]} / ${facts.grid[0]}`);
  const hidden = Object.entries({ min_p: [null, "min-p"], cfg_schedule: ["constant", "guidance schedule"], cfg_power: [1, "its power"] })
    .filter(([name, [usual]]) => facts.defaults[name] !== usual)
    .map(([name, [, text]]) => `${text} ${facts.defaults[name]}`);
  element("hidden-settings").textContent = hidden.length ? `As for the samples of this run: ${hidden.join(", ")}.` : "";
  element("complete").textContent = `Draw what is marked, ${Math.min(COMPLETIONS, facts.limits.images)} times`;
  element("num_samples").max = facts.limits.images;
  element("num_samples").value = Math.min(16, facts.limits.images);
  for (const name of ["temperature", "top_k", "top_p", "cfg_scale"]) element(name).value = facts.defaults[name] ?? "";
  const splits = Object.entries(facts.rows).filter(([, rows]) => rows > 0);
  element("split").replaceChildren(...splits.map(([name, rows]) => new Option(`${name} (${rows})`, name)));
  element("brush").max = Math.max(1, Math.floor(Math.min(...facts.grid) / 2));
}

/** The settings as the server takes them. */
function settings() {
  const number = (id) => (element(id).value === "" ? null : Number(element(id).value));
  return {
    num_samples: number("num_samples"),
    seed: number("seed"),
    temperature: number("temperature"),
    top_k: number("top_k"),
    top_p: number("top_p"),
    min_p: facts.defaults.min_p,
    cfg_scale: facts.can_be_guided ? number("cfg_scale") : 1,
    cfg_schedule: facts.defaults.cfg_schedule,
    cfg_power: facts.defaults.cfg_power,
    draw_order: facts.any_order ? element("draw_order").value || null : null,
    classes: words(),
  };
}

/** The chosen classes as words; of bits, those that are on together. */
function words() {
  const values = [...element("classes").selectedOptions].map((option) => option.value).filter(Boolean);
  if (facts.condition !== "bits" || values.length < 2) return values;
  return [values.filter((value) => value !== "number:none").join("+")];
}

/** Words for the classes of an image; none for none. */
function wordsOf(image) {
  const numbers = image.classes.map((name) => `number:${facts.classes.indexOf(name)}`).filter((word) => !word.endsWith("-1"));
  if (!facts.classes.length || (!numbers.length && facts.knows_unlabelled)) return ["number:none"];
  if (!numbers.length) return [`number:${facts.classes_seen[0]}`];
  return facts.condition === "bits" ? [numbers.join("+")] : numbers.slice(0, 1);
}

/** Words for the label that an image is scored with. */
function asClass(image) {
  const [word] = wordsOf(image);
  if (word === "number:none") return facts.classes.length ? " without a class" : "";
  const names = word.split("+").map((each) => facts.classes[Number(each.slice("number:".length))]);
  return ` as ${names.join(" and ")}`;
}

function say(text) {
  element("status").textContent = text;
}

/** Fill the gallery by `work(gallery, signal)`, which returns what to say; what was under way is stopped. */
async function fill(count, what, work) {
  drawing?.abort();
  const mine = new AbortController();
  drawing = mine;
  element("notices").hidden = true;
  element("stop").disabled = false;
  element("progress").value = 0;
  say(`drawing ${what}`);
  const gallery = new Gallery(count, facts.grid, () => palette, choose);
  try {
    say(await work(gallery, mine.signal));
    element("progress").value = 1;
  } catch (error) {
    if (drawing === mine) say(error.name === "AbortError" ? "stopped" : error.message);
  } finally {
    if (drawing === mine) {
      drawing = null;
      if (document.activeElement === element("stop")) element("draw").focus();
      element("stop").disabled = true;
    }
  }
}

/** Draw images, and show them while they are drawn. */
function draw(path, body) {
  return fill(body.num_samples, `${body.num_samples} images`, async (gallery, signal) => {
    const begun = performance.now();
    for await (const event of stream(path, body, signal)) {
      if (event.event === "progress") {
        element("progress").value = event.drawn / event.tokens;
        event.codes.forEach((codes, place) => gallery.showMosaic(place, codes));
      } else if (event.event === "image") {
        const image = { ...event.image, completes: "known" in body, settings: body };
        gallery.showImage(event.place, image, captionOf(image));
      } else if (event.event === "notice") {
        element("notices").textContent = event.text;
        element("notices").hidden = false;
      } else {
        throw new Error(`${event.error}; ${event.hint}`);
      }
    }
    return `${body.num_samples} images in ${((performance.now() - begun) / 1000).toFixed(1)} s; press one to look at it`;
  });
}

/** One image, of a seed, at several temperatures, which the server draws together. */
function throughTemperatures(image) {
  const own = { ...image.settings, seed: image.seed, first: image.number, num_samples: 1, classes: wordsOf(image) };
  return fill(TEMPERATURES.length, "the same seed at nine temperatures", async (gallery, signal) => {
    await Promise.all(TEMPERATURES.map(async (temperature, place) => {
      const answer = await post("/api/sample", { ...own, temperature }, signal);
      const drawn = { ...answer.images[0], settings: { ...own, temperature }, temperature };
      gallery.showImage(place, drawn, `temperature ${temperature}`);
    }));
    return `image ${image.number} of seed ${image.seed} at nine temperatures`;
  });
}

async function choose(image) {
  const isChosen = () => chosen === image;
  chosen = image;
  element("chosen").hidden = false;
  element("temperatures").disabled = !image.settings || image.completes;
  await report(async () => {
    await painting.show(image, isChosen);
    if (isChosen()) await describe(image, wordsOf(image), asClass(image), isChosen);
  }, isChosen);
}

/** Do something; where it fails, say so. */
async function report(work, stillWanted = () => true) {
  element("problem").textContent = "";
  try {
    await work();
  } catch (error) {
    if (stillWanted()) element("problem").textContent = error.message;
  }
}

/** A file as a PNG in base64, no larger than needed. */
async function pngOf(file) {
  const bitmap = await createImageBitmap(file).catch(() => { throw new Error(`${file.name} is no image that the browser knows`); });
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

element("settings").addEventListener("submit", (event) => {
  event.preventDefault();
  draw("/api/sample/stream", settings());
});
element("new-seed").addEventListener("click", () => {
  element("seed").value = Number(element("seed").value) + 1;
  if (element("settings").reportValidity()) draw("/api/sample/stream", settings());
});
element("stop").addEventListener("click", () => drawing?.abort());
element("row-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const [split, row] = [element("split").value, element("row").value];
  report(async () => {
    const image = await get(`/api/rows/${encodeURIComponent(split)}/${row}`);
    await choose({ ...image, origin: originOfRow(row, split) });
  });
});
element("upload").addEventListener("change", () => {
  const file = element("upload").files[0];
  if (!file) return;
  report(async () => {
    const answer = await post("/api/encode", { images: [await pngOf(file)] });
    await choose({ ...answer.images[0], origin: `${file.name}, as its codes show it` });
  });
});
element("brush").addEventListener("input", () => { painting.brush = Number(element("brush").value); });
element("mark-lower").addEventListener("click", () => painting.mark((row) => row >= facts.grid[0] / 2));
element("mark-right").addEventListener("click", () => painting.mark((row, column) => column >= facts.grid[1] / 2));
element("invert").addEventListener("click", () => {
  const before = new Set(painting.marked);
  painting.mark((row, column) => !before.has(row * facts.grid[1] + column));
});
element("clear").addEventListener("click", () => painting.mark(() => false));
element("complete").addEventListener("click", () => {
  const known = painting.known(chosen.codes);
  const count = Math.min(COMPLETIONS, facts.limits.images);
  draw("/api/complete/stream", { ...settings(), num_samples: count, classes: wordsOf(chosen), known });
  element("gallery").focus();
  element("gallery-heading").scrollIntoView();
});
element("temperatures").addEventListener("click", () => throughTemperatures(chosen));

setUp();
say("ready");
get("/api/palette").then((answer) => { palette = answer.colours; }, () => {}); // without it, mosaics are grey
