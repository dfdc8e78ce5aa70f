// The explorer of a report: see explorer.py, which writes the data beside this script.
"use strict";
for (const root of document.querySelectorAll(".explorer")) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const status = root.querySelector("[role=status]");
  const [height, width] = data.size;
  const wide = Math.round(Math.max(72, Math.min(220, 980 / (data.images.length + 0.8))));
  const tall = Math.round((wide * height) / width);

  const decoded = (encoded) => Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  for (const model of data.models) {
    model.tokens = new Int8Array(decoded(model.tokens).buffer);
    const count = model.tokens.length / model.width;
    model.lengths = new Float32Array(count);
    for (let token = 0; token < count; token++) {
      let sum = 0;
      for (let part = token * model.width; part < (token + 1) * model.width; part++) sum += model.tokens[part] ** 2;
      model.lengths[token] = Math.sqrt(sum) || 1;
    }
  }
  const depth = data.depth && { size: data.depth.size, values: new Uint16Array(decoded(data.depth.values).buffer) };

  // Place of a query: an image, and shares of its sides.
  const query = { image: 0, down: 0.5, right: 0.5 };

  const patchAt = (model, image, down, right) => {
    const [rows, cols] = model.grid;
    const row = Math.min(rows - 1, Math.floor(down * rows)), col = Math.min(cols - 1, Math.floor(right * cols));
    return (image * rows + row) * cols + col;
  };
  const cosine = (model, one, other) => {
    let sum = 0;
    const first = one * model.width, second = other * model.width;
    for (let part = 0; part < model.width; part++) sum += model.tokens[first + part] * model.tokens[second + part];
    return sum / (model.lengths[one] * model.lengths[other]);
  };
  const metres = (image, down, right) => {
    if (!depth) return "";
    const [rows, cols] = depth.size;
    const row = Math.min(rows - 1, Math.floor(down * rows)), col = Math.min(cols - 1, Math.floor(right * cols));
    const value = depth.values[(image * rows + row) * cols + col];
    return value ? `${(value / 100).toFixed(2)} m` : "no depth";
  };

  // A table: a row of photographs, and one of maps for each model.
  const table = document.createElement("table");
  table.className = "explore";
  const canvases = [];
  const pictures = data.images.map((source) => {
    const picture = new Image();
    picture.src = source;
    return picture;
  });
  for (const name of ["image", ...data.models.map((model) => model.name)]) {
    const line = table.insertRow();
    const head = document.createElement("th");
    head.textContent = name;
    line.append(head);
    canvases.push(data.images.map((_, image) => {
      const canvas = document.createElement("canvas");
      canvas.width = wide;
      canvas.height = tall;
      if (name === "image" && !canvases.length) {
        canvas.tabIndex = 0;
        canvas.setAttribute("role", "application");
        canvas.setAttribute("aria-label", `image ${image + 1}: arrow keys move the point`);
      } else {
        canvas.setAttribute("aria-hidden", "true");
      }
      line.insertCell().append(canvas);
      listen(canvas, image);
      return canvas;
    }));
  }
  root.querySelector(".scroll").append(table, colourBar());

  function listen(canvas, image) {
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      const inside = (share) => Math.min(1 - 1e-6, Math.max(0, share));
      return [inside((event.clientY - box.top) / box.height), inside((event.clientX - box.left) / box.width)];
    };
    canvas.addEventListener("pointerdown", (event) => {
      const [down, right] = place(event);
      ask(image, down, right);
    });
    canvas.addEventListener("pointermove", (event) => {
      const [down, right] = place(event);
      if (event.buttons & 1) ask(image, down, right);
      else hover(image, down, right);
    });
    canvas.addEventListener("pointerleave", () => tell());
    canvas.addEventListener("focus", () => { if (query.image !== image) ask(image, 0.5, 0.5); });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      // By a patch of the finest model.
      const rows = Math.max(...data.models.map((model) => model.grid[0]));
      const cols = Math.max(...data.models.map((model) => model.grid[1]));
      const moved = (share, count, by) => {
        const patch = Math.min(count - 1, Math.max(0, Math.floor(share * count) + by));
        return (patch + 0.5) / count;
      };
      ask(image, moved(query.down, rows, step[0]), moved(query.right, cols, step[1]));
    });
  }

  function ask(image, down, right) {
    Object.assign(query, { image, down, right });
    draw();
    tell();
  }

  function at(image, down, right) {
    const told = metres(image, down, right), pixel = (share, side) => Math.floor(share * side + 1e-6);
    return `image ${image + 1}, ${pixel(right, width)} right, ${pixel(down, height)} down${told && `, ${told}`}`;
  }

  function tell() {
    status.textContent = `Point: ${at(query.image, query.down, query.right)}.`;
  }

  function hover(image, down, right) {
    const cosines = data.models.map((model) => {
      const value = cosine(model, patchAt(model, query.image, query.down, query.right), patchAt(model, image, down, right));
      return `${model.name} ${value.toFixed(2)}`;
    });
    tell();
    status.textContent += ` Here: ${at(image, down, right)}; cosine to the point: ${cosines.join(", ")}.`;
  }

  function draw() {
    data.images.forEach((_, image) => {
      const pen = canvases[0][image].getContext("2d");
      pen.imageSmoothingEnabled = wide < 3 * width;
      pen.drawImage(pictures[image], 0, 0, wide, tall);
      if (image === query.image) mark(pen, query.down, query.right, true);
    });
    data.models.forEach((model, row) => {
      const [rows, cols] = model.grid;
      const asked = patchAt(model, query.image, query.down, query.right);
      data.images.forEach((_, image) => {
        const canvas = canvases[row + 1][image], pen = canvas.getContext("2d");
        let best = -2, where = 0;
        for (let patch = 0; patch < rows * cols; patch++) {
          const value = cosine(model, asked, image * rows * cols + patch);
          if (value > best) [best, where] = [value, patch];
          const colour = data.colours[Math.round(255 * Math.min(1, Math.max(0, value)))];
          pen.fillStyle = `rgb(${colour})`;
          const top = Math.floor(patch / cols), left = patch % cols;
          const x = Math.floor(left * canvas.width / cols), y = Math.floor(top * canvas.height / rows);
          pen.fillRect(x, y, Math.ceil(canvas.width / cols) + 1, Math.ceil(canvas.height / rows) + 1);
        }
        if (image === query.image) mark(pen, query.down, query.right, true);
        else mark(pen, (Math.floor(where / cols) + 0.5) / rows, (where % cols + 0.5) / cols, false);
      });
    });
  }

  function mark(pen, down, right, filled) {
    const [x, y] = [right * pen.canvas.width, down * pen.canvas.height];
    pen.beginPath();
    pen.arc(x, y, 5, 0, 7);
    pen.lineWidth = 2;
    if (filled) { pen.fillStyle = "#d55e00"; pen.fill(); }
    pen.strokeStyle = "white";
    pen.stroke();
  }

  function colourBar() {
    const bar = document.createElement("p");
    bar.className = "soft bar";
    const stops = data.colours.filter((_, place) => place % 15 === 0).map((colour) => `rgb(${colour})`);
    const band = document.createElement("span");
    band.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    bar.append("cosine: 0 and below ", band, " 1");
    return bar;
  }

  Promise.all(pictures.map((picture) => picture.decode())).then(() => { draw(); tell(); });
}
