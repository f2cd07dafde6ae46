// The chosen image, and which of its codes are marked to be drawn anew: by pointer, by keyboard, by halves.

import { sourceOf } from "./gallery.js";

const canvas = document.getElementById("paint");
const pen = canvas.getContext("2d");
const cellText = document.getElementById("cell");
const SIDE = 768; // pixels of the canvas, whatever its size on the screen

export class Painting {
  constructor(grid, changed) {
    [this.height, this.width] = grid;
    this.changed = changed;
    this.picture = null;
    this.marked = new Set();
    this.cursor = [0, 0];
    this.brush = 1;
    canvas.width = SIDE;
    canvas.height = Math.round((SIDE * this.height) / this.width);
    let marking = null; // whether a stroke marks or keeps
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      marking = !this.isMarked(...this.cellAt(event));
      this.touch(...this.cellAt(event), marking);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (marking !== null) this.touch(...this.cellAt(event), marking);
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { marking = null; });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => this.redraw());
    canvas.addEventListener("blur", () => this.redraw());
  }

  /** Show an image, unless another one is chosen meanwhile. */
  async show(image, isChosen) {
    const picture = new Image();
    picture.src = sourceOf(image);
    await picture.decode();
    if (!isChosen()) return;
    this.picture = picture;
    this.marked.clear();
    this.redraw();
  }

  /** Row and column of the cell under the pointer. */
  cellAt(event) {
    const box = canvas.getBoundingClientRect();
    return [
      Math.floor(((event.clientY - box.top) / box.height) * this.height),
      Math.floor(((event.clientX - box.left) / box.width) * this.width),
    ];
  }

  /** Mark or keep the cells under the brush. */
  touch(y, x, marks) {
    const reach = this.brush - 1;
    for (let row = Math.max(0, y - reach); row <= Math.min(this.height - 1, y + reach); row++) {
      for (let column = Math.max(0, x - reach); column <= Math.min(this.width - 1, x + reach); column++) {
        if (marks) this.marked.add(row * this.width + column);
        else this.marked.delete(row * this.width + column);
      }
    }
    this.redraw();
  }

  /** Mark the cells for which `wanted(row, column)` holds, and keep all others. */
  mark(wanted) {
    this.marked.clear();
    for (let row = 0; row < this.height; row++) {
      for (let column = 0; column < this.width; column++) {
        if (wanted(row, column)) this.marked.add(row * this.width + column);
      }
    }
    this.redraw();
  }

  isMarked(row, column) {
    return this.marked.has(row * this.width + column);
  }

  key(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const [row, column] = this.cursor;
    if (step) {
      this.cursor = [
        Math.min(this.height - 1, Math.max(0, row + step[0])),
        Math.min(this.width - 1, Math.max(0, column + step[1])),
      ];
      this.redraw();
    } else if (event.key === " ") {
      this.touch(row, column, !this.isMarked(row, column));
    } else {
      return;
    }
    event.preventDefault();
    const [y, x] = this.cursor;
    cellText.textContent = `row ${y + 1}, column ${x + 1}: ${this.isMarked(y, x) ? "drawn anew" : "kept"}`;
  }

  redraw() {
    const [cellHeight, cellWidth] = [canvas.height / this.height, canvas.width / this.width];
    pen.imageSmoothingEnabled = false;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (this.picture) pen.drawImage(this.picture, 0, 0, canvas.width, canvas.height);
    for (const cell of this.marked) {
      const [top, left] = [Math.floor(cell / this.width) * cellHeight, (cell % this.width) * cellWidth];
      pen.fillStyle = "rgba(214, 51, 132, 0.6)";
      pen.fillRect(left, top, cellWidth, cellHeight);
      pen.strokeStyle = "#ffffff";
      pen.lineWidth = 2;
      pen.beginPath();
      pen.moveTo(left, top + cellHeight);
      pen.lineTo(left + cellWidth, top);
      pen.stroke();
    }
    if (document.activeElement === canvas) {
      pen.lineWidth = 6;
      pen.strokeStyle = "#0b57d0";
      pen.strokeRect(this.cursor[1] * cellWidth, this.cursor[0] * cellHeight, cellWidth, cellHeight);
      pen.lineWidth = 2;
      pen.strokeStyle = "#ffffff";
      pen.strokeRect(this.cursor[1] * cellWidth, this.cursor[0] * cellHeight, cellWidth, cellHeight);
    }
    this.changed(this.marked.size);
  }

  /** Codes with -1 where one is marked. */
  known(codes) {
    return codes.map((row, y) => row.map((code, x) => (this.isMarked(y, x) ? -1 : code)));
  }
}
