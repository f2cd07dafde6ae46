"use strict";
// The values of a chart's points, shown on hover and focus; arrow keys go along a curve.
const box = document.getElementById("value");

function show(point) {
  const place = point.getBoundingClientRect();
  box.textContent = point.dataset.value;
  box.hidden = false;
  const left = Math.min(place.left, window.innerWidth - box.offsetWidth - 8);
  box.style.left = `${Math.max(8, left)}px`;
  box.style.top = `${Math.max(8, place.top - box.offsetHeight - 8)}px`;
}

function move(point, step) {
  const points = [...point.parentElement.querySelectorAll("[data-value]")];
  const next = points[points.indexOf(point) + step];
  if (!next) return;
  point.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

for (const point of document.querySelectorAll("[data-value]")) {
  point.addEventListener("mouseenter", () => show(point));
  point.addEventListener("focus", () => show(point));
  for (const event of ["mouseleave", "blur"]) point.addEventListener(event, () => { box.hidden = true; });
  point.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      move(point, step);
    } else if (event.key === "Escape") {
      box.hidden = true;
    }
  });
}
