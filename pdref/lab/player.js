// Plays generations on one clock of sequential forwards. Text enters the page as text nodes only.
// data = {films, keys}; a film's cells are [kind, clock, text, clock, text, ...], text null for a mask.
// Colours are the CSS variables that player.py makes of its palette.

function node(tag, classes, ...children) {
  const made = document.createElement(tag);
  made.className = classes;
  made.append(...children);
  return made;
}

function button(classes, label, act) {
  const made = node("button", classes);
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.title = label;
  made.addEventListener("click", act);
  return made;
}

// The state of a cell at a time: "none" before it is there, "mask", "new" in its first tick, then "old".
function stateAt(cell, clock) {
  let state = "none", text = null;
  for (let i = 1; i < cell.length && cell[i] <= clock; i += 2) {
    text = cell[i + 1];
    state = text === null ? "mask" : cell[i] === clock ? "new" : "old";
  }
  return [state, text];
}

function drawCell(cell, line, watched) {
  const [kind] = cell;
  const written = cell.findLast((x, i) => i > 0 && i % 2 === 0 && x !== null) ?? "";
  const body = written.trimStart();
  const space = written.slice(0, written.length - body.length);
  if (space !== " " || line.querySelector(".word, .echo")) line.append(space); // outside the cell: lines break there
  const drawn = node("span", "cell none " + kind, kind === "filler" ? "·" : body);
  if (kind === "tag") drawn.title = body;
  if (kind === "tag" || kind === "filler") drawn.setAttribute("aria-hidden", "true");
  const last = line.lastElementChild;
  if (kind === "tag" && last) line.append(node("span", "glue", last, drawn)); // a tag does not begin a new line
  else line.append(drawn);
  let before = "none", shown = written;
  watched.push((clock) => {
    const [state, text] = stateAt(cell, clock);
    if (text !== null && text !== shown && kind !== "filler") drawn.textContent = (shown = text).trimStart();
    if (state === before) return;
    drawn.classList.replace(before, state);
    if (kind !== "tag" && kind !== "filler") drawn.setAttribute("aria-hidden", String(state === "mask" || state === "none"));
    before = state;
  });
}

// Cells on one line, in the colour of their span.
function drawLine(classes, span, cells, watched) {
  const line = node("div", classes);
  if (span >= 0) line.style.setProperty("--c", `var(--span-${span % 6})`);
  for (const cell of cells) drawCell(cell, line, watched);
  if (cells.length) appears(line, cells, watched);
  return line;
}

// An element shows from its first cell on.
function appears(element, cells, watched) {
  const born = Math.min(...cells.map((cell) => cell[1]));
  watched.push((clock) => element.classList.toggle("unborn", clock < born));
}

function drawSpan([, stage, span, topic, cells], known, watched) {
  const echoes = cells.filter(([kind], i) => kind === "echo" || (i === 0 && kind === "tag"));
  const card = drawLine("card", span, [], watched);
  const label = drawLine("label", span, echoes, watched);
  const rest = cells.filter((cell) => !echoes.includes(cell));
  if (echoes.length < 2 && topic) {
    const name = node("span", "cell none echo", topic);
    label.append(" ", name);
    const from = Math.max(known.get(`${stage}:${span}`) ?? 0, cells[0][1]);
    watched.push((clock) => name.classList.toggle("none", clock < from));
  }
  card.append(label);
  if (rest.length) card.append(drawLine("text", span, rest, watched));
  appears(card, cells, watched);
  return card;
}

function drawFilm(film, watched, ownPrompt) {
  const body = node("div", "body");
  if (ownPrompt) body.append(node("p", "prompt", node("span", "caption", "prompt"), film.prompt));
  const known = new Map(); // when the topic of a stage's span stands there
  let plan = null;
  for (const line of film.lines) {
    const [area, stage, span, , cells] = line;
    if (area === "plan") {
      if (!plan) {
        plan = node("div", "plan", node("span", "caption", "plan"));
        body.append(plan);
        appears(plan, cells, watched);
      }
      plan.append(drawLine("chip", span, cells, watched), " ");
      known.set(`${stage}:${span}`, Math.max(...cells.map((cell) => cell.at(-2))));
      continue;
    }
    plan = null;
    if (area === "span") body.append(drawSpan(line, known, watched));
    else {
      const loose = cells.some(([kind]) => kind === "word");
      const tag = area === "between" && !loose ? cells[0].at(-1) : "";
      const drawn = drawLine(tag ? "sync" : loose ? area + " loose" : area, -1, cells, watched);
      if (tag) drawn.append(node("span", "caption", tag === "<sync/>" ? "sync: what follows reads all of this" : "end"));
      body.append(drawn);
    }
  }
  for (const note of film.notes) {
    const drawn = node("p", "note", note);
    body.append(drawn);
    appears(drawn, [[null, film.path]], watched);
  }

  const phase = node("span", "phase");
  const name = node("h2", "", film.name);
  const panel = node("section", "panel", node("header", "", name, phase), body);
  panel.setAttribute("aria-label", film.name || "generation");
  watched.push((clock) => {
    const at = film.frames.findLast((frame) => frame[3] <= clock) ?? film.frames[0];
    const done = clock >= film.path;
    panel.classList.toggle("done", done);
    phase.textContent = done ? `done after ${film.path} forwards` : at[0] + (at[2] > 1 ? ` ${at[1]}/${at[2]}` : "");
  });
  return panel;
}

function drawTrack(film, first, longest, watched) {
  const colour = { plan: "var(--plan)", span: "var(--content)", rest: "var(--tag)" };
  let from = 0;
  const stops = film.spent.map(([what, until]) => {
    const stop = `${colour[what]} ${(100 * from) / longest}% ${(100 * until) / longest}%`;
    from = until;
    return stop;
  });
  const bar = node("div", "bar");
  bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  const count = node("span", "count");
  watched.push((clock) => {
    const spent = Math.min(clock, film.path);
    bar.style.clipPath = `inset(0 ${100 - (100 * spent) / longest}% 0 0 round 4px)`;
    const done = clock >= film.path;
    const factor = film === first ? "" : ` · ${(first.path / film.path).toFixed(1)}×`;
    count.textContent = done ? `✓ ${film.path}${factor}` : String(spent);
    count.classList.toggle("done", done);
  });
  return [node("span", "name", film.name), node("div", "rail", bar), count];
}

function play(host, style, data) {
  host.dataset.ready = "";
  const { jpThemeLight } = document.body.dataset; // JupyterLab says which scheme it shows; a page follows the system
  if (jpThemeLight) host.style.colorScheme = jpThemeLight === "true" ? "light" : "dark";
  const films = data.films;
  const longest = Math.max(1, ...films.map((film) => film.path));
  const watched = []; // functions of the clock
  const sameprompt = films.every((film) => film.prompt === films[0].prompt);

  const toggle = button("toggle", "Play", () => (timer ? pause() : start()));
  const back = button("step", "One forward back", () => goBy(-1));
  const on = button("step", "One forward on", () => goBy(1));
  back.append("‹");
  on.append("›");
  const speed = node("select", "");
  speed.setAttribute("aria-label", "Speed");
  for (const x of [0.25, 0.5, 1, 2, 4]) speed.append(new Option(`${x}×`, x, x === 1, x === 1));
  const tags = node("input", "");
  tags.type = "checkbox";
  tags.addEventListener("change", () => root.classList.toggle("spelled", tags.checked));
  const slider = node("input", "slider");
  Object.assign(slider, { type: "range", min: 0, max: longest, step: 1, value: 0 });
  slider.setAttribute("aria-label", "Forwards, one after another");
  slider.addEventListener("input", () => (pause(), go(Number(slider.value))));
  const status = node("span", "status");
  const spoken = node("span", "spoken");
  spoken.setAttribute("role", "status");
  const head = node("div", "head");
  head.style.setProperty("--tracks", films.length);

  const legend = node("div", "legend");
  for (const [classes, text] of [["cell mask", "not yet known"], ["cell new", "just set"], ["dot planning", "planning"], ["dot writing", "writing content"], ["dot rest", "reading what is finished"]])
    legend.append(node("span", "", node("i", classes), text));
  const race = node("div", "race");
  for (const film of films) race.append(...drawTrack(film, films[0], longest, watched));
  race.append(node("span", "name axis", "forwards"), node("div", "scrub", head, slider), status);

  const root = node(
    "div",
    "player" + (films.length === 1 ? " single" : ""),
    ...(sameprompt ? [node("p", "prompt", node("span", "caption", "prompt"), films[0].prompt)] : []),
    node("div", "controls", toggle, back, on, node("label", "", "speed ", speed), node("label", "", tags, " spell the tags"), legend),
    race,
    node("div", "panels", ...films.map((film) => drawFilm(film, watched, !sameprompt))),
    spoken,
  );
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "Animation of " + films.map((film) => film.name || "a generation").join(", "));

  let clock = 0, timer = 0, began = 0, owed = 0;
  function go(to) {
    clock = Math.max(0, Math.min(longest, to));
    for (const update of watched) update(clock);
    slider.value = clock;
    slider.setAttribute("aria-valuetext", `${clock} of ${longest} forwards`);
    head.style.setProperty("--at", clock / longest);
    status.textContent = `${clock} / ${longest}`;
    if (!timer) (face(), tell());
  }
  function goBy(steps) {
    pause();
    go(clock + steps);
  }
  function tell() {
    const done = films.filter((film) => film.path <= clock).map((film) => film.name || "the generation");
    spoken.textContent = `${clock} of ${longest} forwards.` + (done.length ? ` Finished: ${done.join(", ")}.` : "");
  }
  function face() {
    const label = timer ? "Pause" : clock >= longest ? "Replay" : "Play";
    toggle.textContent = label;
    toggle.dataset.icon = label;
    toggle.setAttribute("aria-label", label);
    toggle.title = `${label} (space)`;
  }
  function tick(now) {
    const rate = Math.min(24, Math.max(4, longest / 10)) * Number(speed.value); // forwards per second
    owed += ((now - began) / 1000) * rate;
    began = now;
    if (owed >= 1) {
      go(clock + Math.floor(owed));
      owed %= 1;
    }
    if (clock >= longest) return pause();
    timer = requestAnimationFrame(tick);
  }
  function start() {
    if (clock >= longest) go(0);
    began = performance.now();
    owed = 0;
    timer = requestAnimationFrame(tick);
    face();
  }
  function pause() {
    cancelAnimationFrame(timer);
    timer = 0;
    face();
    tell();
  }
  function key(event) {
    const from = event.composedPath()[0];
    const typed = from instanceof HTMLElement ? from.tagName : "";
    if (event.ctrlKey || event.metaKey || event.altKey || typed === "SELECT") return;
    if (event.key === " " && (typed === "BUTTON" || from === tags)) return;
    if (event.key.startsWith("Arrow") && from === slider) return;
    const act = {
      " ": () => (timer ? pause() : start()),
      ArrowLeft: () => goBy(-1),
      ArrowRight: () => goBy(1),
      Home: () => goBy(-longest),
      End: () => goBy(longest),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation(); // a notebook would move to another of its cells
    act();
  }
  (data.keys ? document : root).addEventListener("keydown", key);

  const shadow = host.attachShadow({ mode: "open" });
  const sheet = document.createElement("style");
  sheet.textContent = style;
  shadow.append(sheet, root);
  go(0);
  face();
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
    const seen = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      seen.disconnect();
      if (!clock) start();
    });
    seen.observe(host);
  }
}
