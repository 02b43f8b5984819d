// Before and after in one place: a divider between them, zoom to one pixel of the result for one of the screen.

const MOST = 8; // device pixels for one of the result

export class Viewer {
  constructor(stage) {
    this.stage = stage;
    this.find = (id) => stage.querySelector(`#${id}`);
    this.images = { before: this.find("before"), after: this.find("after") };
    this.divider = this.find("divider");
    this.size = null; // of the result, in its pixels
    this.view = { scale: 1, x: 0, y: 0, fits: true };
    this.pointers = new Map();
    this.listen();
  }

  // Show a picture: URLs of before and after (null where there is none), and the size of the result.
  show(before, after, size) {
    const same = this.size && size && this.size.join() === size.join() && this.shown === before;
    this.shown = before;
    this.size = size;
    for (const [name, url] of Object.entries({ before, after })) {
      const image = this.images[name];
      if (url && image.dataset.url !== url) image.src = url;
      if (!url) image.removeAttribute("src");
      image.dataset.url = url || "";
      image.classList.toggle("shown", Boolean(url && size));
      if (size) [image.style.width, image.style.height] = size.map((side) => `${side}px`);
    }
    this.stage.classList.toggle("compared", Boolean(before && after && size));
    this.stage.classList.toggle("filled", Boolean(size));
    if (same) this.draw();
    else this.fit();
  }

  // The scale at which the whole picture fits, and that of 1:1.
  get whole() {
    return Math.min(this.stage.clientWidth / this.size[0], this.stage.clientHeight / this.size[1]);
  }

  get one() {
    return 1 / window.devicePixelRatio;
  }

  fit() {
    this.view.fits = true;
    this.draw();
  }

  // Zoom to a scale, leaving what lies under a point of the stage where it is.
  zoom(scale, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    if (!this.size) return;
    const least = Math.min(this.whole, this.one);
    const bounded = Math.min(Math.max(scale, least), Math.max(MOST * this.one, this.whole));
    const factor = bounded / this.view.scale;
    this.view = {
      scale: bounded,
      x: x - (x - this.view.x) * factor,
      y: y - (y - this.view.y) * factor,
      fits: Math.abs(bounded / this.whole - 1) < 0.001,
    };
    this.draw();
  }

  move(x, y) {
    this.view.x += x;
    this.view.y += y;
    this.draw();
  }

  divide(x) {
    this.divider.value = Math.min(Math.max((x / this.stage.clientWidth) * 100, 0), 100);
    this.draw();
  }

  draw() {
    if (!this.size) return;
    const { clientWidth, clientHeight } = this.stage;
    const view = this.view;
    if (view.fits) view.scale = this.whole;
    const place = (offset, side, room) =>
      side <= room ? (room - side) / 2 : Math.min(Math.max(offset, room - side), 0);
    view.x = place(view.x, this.size[0] * view.scale, clientWidth);
    view.y = place(view.y, this.size[1] * view.scale, clientHeight);
    const at = (this.divider.value / 100) * clientWidth;
    const cut = Math.min(Math.max((at - view.x) / view.scale, 0), this.size[0]);
    const compared = this.stage.classList.contains("compared");
    for (const image of Object.values(this.images)) {
      image.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
      image.style.imageRendering = view.scale > 2 * this.one ? "pixelated" : "auto";
    }
    this.images.before.style.imageRendering = "auto"; // it is interpolated, as by any other program
    this.images.before.style.clipPath = compared ? `inset(0 ${this.size[0] - cut}px 0 0)` : "none";
    this.images.after.style.clipPath = compared ? `inset(0 0 0 ${cut}px)` : "none";
    this.find("line").style.left = `${at}px`;
    this.find("tag-before").style.opacity = at < 90 ? 0 : 1;
    this.find("tag-after").style.opacity = clientWidth - at < 90 ? 0 : 1;
    this.stage.classList.toggle("zoomed", view.scale > this.whole);
    this.find("zoom-fit").setAttribute("aria-pressed", view.fits);
    this.find("zoom-one").setAttribute("aria-pressed", Math.abs(view.scale / this.one - 1) < 0.001);
  }

  listen() {
    const { stage } = this;
    new ResizeObserver(() => this.draw()).observe(stage);
    this.divider.addEventListener("input", () => this.draw());
    this.find("zoom-in").addEventListener("click", () => this.zoom(this.view.scale * 1.5));
    this.find("zoom-out").addEventListener("click", () => this.zoom(this.view.scale / 1.5));
    this.find("zoom-fit").addEventListener("click", () => this.fit());
    this.find("zoom-one").addEventListener("click", () => this.zoom(this.one));
    stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    stage.addEventListener("dblclick", (event) => {
      if (event.target.closest(".zoom")) return;
      if (this.view.fits) this.zoom(this.one, ...this.point(event));
      else this.fit();
    });
    stage.addEventListener("pointerdown", (event) => this.press(event));
    stage.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) {
      stage.addEventListener(end, (event) => this.release(event));
    }
    stage.addEventListener("keydown", (event) => this.key(event));
  }

  point(event) {
    const box = this.stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  wheel(event) {
    if (!this.size) return;
    event.preventDefault();
    this.zoom(this.view.scale * Math.exp(-event.deltaY * 0.0015), ...this.point(event));
  }

  press(event) {
    if (!this.size || event.target.closest(".zoom")) return;
    this.stage.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.point(event));
    const [x] = this.point(event);
    const near = Math.abs(x - (this.divider.value / 100) * this.stage.clientWidth) < 28;
    this.dividing = this.stage.classList.contains("compared") && (near || this.view.fits);
    if (this.dividing && !near && event.pointerType === "mouse") this.divide(x);
    this.stage.classList.toggle("moving", !this.dividing);
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = this.point(event);
    if (this.pointers.size === 2) {
      const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      const apart = (at) => Math.hypot(at[0] - other[0], at[1] - other[1]);
      const middle = [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2];
      this.zoom((this.view.scale * apart(now)) / Math.max(apart(before), 1), ...middle);
    } else if (this.dividing) {
      this.divide(now[0]);
    } else {
      this.move(now[0] - before[0], now[1] - before[1]);
    }
    this.pointers.set(event.pointerId, now);
  }

  release(event) {
    this.pointers.delete(event.pointerId);
    this.stage.classList.remove("moving");
  }

  key(event) {
    if (event.target !== this.stage) return;
    const step = 60;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (event.key in moves && !this.view.fits) this.move(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoom(this.view.scale * 1.5);
    else if (event.key === "-") this.zoom(this.view.scale / 1.5);
    else if (event.key === "0") this.fit();
    else if (event.key === "1") this.zoom(this.one);
    else return;
    event.preventDefault();
  }
}
