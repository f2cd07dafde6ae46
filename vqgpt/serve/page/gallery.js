// The images: mosaics of the mean colours of their codes while they are drawn, then the images themselves.

const list = document.getElementById("gallery");

/** A place for each of some images, whose codes are not there yet; `choose` is called with an image once it is pressed. */
export class Gallery {
  constructor(count, grid, palette, choose) {
    this.grid = grid;
    this.palette = palette; // a function: the colours may come later
    this.choose = choose;
    this.buttons = Array.from({ length: count }, (_, place) => this.newButton(place));
    list.replaceChildren(...this.buttons.map((button) => {
      const item = document.createElement("li");
      item.append(button);
      return item;
    }));
  }

  newButton(place) {
    const button = document.createElement("button");
    button.type = "button";
    button.disabled = true;
    button.setAttribute("aria-label", `place ${place + 1}, not drawn yet`);
    const canvas = document.createElement("canvas");
    [canvas.height, canvas.width] = this.grid;
    button.append(canvas, document.createElement("span"));
    return button;
  }

  /** Codes so far, -1 for none yet. */
  showMosaic(place, codes) {
    const canvas = this.buttons[place].querySelector("canvas");
    if (!canvas) return;
    const pen = canvas.getContext("2d");
    codes.forEach((row, y) => row.forEach((code, x) => {
      if (code < 0) return;
      pen.fillStyle = this.palette()[code] ?? "#888888";
      pen.fillRect(x, y, 1, 1);
    }));
  }

  showImage(place, image, caption) {
    const button = this.buttons[place];
    const picture = document.createElement("img");
    picture.src = sourceOf(image);
    picture.alt = "";
    const text = document.createElement("span");
    text.textContent = caption;
    button.replaceChildren(picture, text);
    button.removeAttribute("aria-label");
    button.disabled = false;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      for (const other of this.buttons) other.setAttribute("aria-pressed", String(other === button));
      this.choose(image);
    });
  }
}

export function sourceOf(image) {
  return `data:image/png;base64,${image.png}`;
}
