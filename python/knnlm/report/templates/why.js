"use strict";
(() => {
  const { texts, entries } = JSON.parse(document.getElementById("data").textContent);
  const holder = document.getElementById("texts"), panel = document.getElementById("panel"), legend = document.getElementById("legend");
  const LM = 1, KNN = 2, P = 3, BITS = 4, NEAR = 5;
  const tokens = [], spans = [], owners = [];
  const make = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const drawn = text => text.trim() ? text : text.replace(/ /g, "\u2423").replace(/\n/g, "\u23ce").replace(/\t/g, "\u21e5");
  const percent = x => x === null ? "\u2013" : x >= 0.9995 ? "100 %" : x >= 0.1 ? (100 * x).toFixed(1) + " %" : x >= 0.00005 ? (100 * x).toPrecision(2) + " %" : x > 0 ? "< 0.005 %" : "0 %";

  texts.forEach((text, number) => {
    if (texts.length > 1) holder.append(make("h3", "", text.name));
    let line = make("p");
    if (text.before) line.append(make("span", "outside", text.before));
    holder.append(line);
    text.tokens.forEach((token, i) => {
      const span = make("span", "t", token[0]);
      span.dataset.i = tokens.length;
      tokens.push(token); spans.push(span); owners.push([number, i]);
      line.append(span);
      if (token[0].endsWith("\n") && line.childElementCount > 60) { line = make("p"); holder.append(line); }  // laid out as it is seen
    });
  });

  const mix = (base, strength) => `color-mix(in srgb, var(${base}) ${Math.round(100 * strength)}%, transparent)`;
  const colour = {
    change: token => token[BITS] >= 0 ? mix("--good", Math.min(token[BITS] / 5, 1) * 0.55) : mix("--bad", Math.min(-token[BITS] / 2, 1) * 0.55),
    lm: token => mix("--line-1", token[LM] * 0.6), knn: token => mix("--line-2", (token[KNN] ?? 0) * 0.6), p: token => mix("--line-3", token[P] * 0.6),
  };
  const patch = (text, value) => { const i = make("i"); i.style.background = value; legend.append(i, text); };
  function paint(kind) {
    spans.forEach((span, i) => span.style.setProperty("--c", colour[kind](tokens[i])));
    legend.textContent = "";
    if (kind === "change") {
      patch("32 times likelier or more", mix("--good", 0.55)); patch("as before", "transparent"); patch("a quarter as likely or less", mix("--bad", 0.55));
    } else {
      const base = { lm: "--line-1", knn: "--line-2", p: "--line-3" }[kind];
      patch("0", "transparent"); patch("0.5", mix(base, 0.3)); patch("1", mix(base, 0.6));
    }
  }

  let chosen = -1, fixed = false;
  const gauge = (box, name, sub, value) => {
    const label = make("b", "", "p"); if (sub) label.append(make("sub", "", sub));
    const track = make("div", "gauge"), bar = make("i"); bar.style.width = 100 * (value ?? 0) + "%"; track.append(bar);
    box.append(label, track, make("span", "v", percent(value)));
  };
  const SVG = "http://www.w3.org/2000/svg";
  const shape = (name, values, text) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(values)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  function plane(near) {
    const known = near.filter(n => n[4] !== null && n[5] !== null);
    if (!known.length) return null;
    const far = Math.max(...known.map(n => Math.max(Math.abs(n[4]), Math.abs(n[5]))), 1e-9);
    const box = shape("svg", { viewBox: "0 0 320 190", role: "img", "aria-label": "The query and its neighbors in two of the dimensions" });
    const x = v => 160 + 130 * v / far, y = v => 95 - 78 * v / far;
    near.forEach((n, i) => {
      if (n[4] === null) return;
      box.append(shape("line", { x1: 160, y1: 95, x2: x(n[4]), y2: y(n[5]), stroke: "var(--rule)" }));
    });
    near.forEach((n, i) => {
      if (n[4] === null) return;
      box.append(shape("circle", { cx: x(n[4]), cy: y(n[5]), r: 3 + 6 * Math.sqrt(n[2] ?? 0), class: n[3] ? "n right" : "n" }));
      box.append(shape("text", { x: x(n[4]) + 9, y: y(n[5]) + 4 }, String(i + 1)));
    });
    box.append(shape("rect", { x: 155, y: 90, width: 10, height: 10, class: "q" }));
    return box;
  }
  function choose(i, keep) {
    if (i < 0 || i >= tokens.length) return;
    if (chosen >= 0) { spans[chosen].classList.remove("chosen"); spans[chosen].removeAttribute("aria-current"); }
    chosen = i; fixed = keep;
    const token = tokens[i], [number, place] = owners[i];
    spans[i].classList.add("chosen"); spans[i].setAttribute("aria-current", "true");
    panel.textContent = ""; panel.classList.add("open"); document.body.classList.add("reading");
    const close = make("button", "close", "\u2715"); close.type = "button"; close.setAttribute("aria-label", "Close"); close.onclick = shut;
    const head = make("h3"); head.append(make("mark", "", drawn(token[0]))); head.append(` position ${texts[number].start + place}`);
    const box = make("div", "ps");
    gauge(box, "p", "LM", token[LM]); gauge(box, "p", "kNN", token[KNN]); gauge(box, "p", "", token[P]);
    const bits = token[BITS];
    const said = make("p", bits > 0.05 ? "good" : bits < -0.05 ? "bad" : "soft", Math.abs(bits) <= 0.05 ? "The store changed nothing here." : `The store made it ${(2 ** Math.abs(bits)).toPrecision(2)} times ${bits > 0 ? "likelier" : "less likely"} (${bits > 0 ? "+" : "\u2212"}${Math.abs(bits).toFixed(2)} bits).`);
    const list = make("ol");
    token[NEAR].forEach((near, rank) => {
      const [id, name, before, word, after] = entries[near[0]];
      const item = make("li", near[3] ? "right" : ""), context = make("span", "context"), from = make("span", "from");
      context.append(before.length > 90 ? "\u2026" + before.slice(-90) : before, make("mark", "", word), make("span", "after", after.slice(0, 40)));
      from.append(make("span", "where", `${rank + 1}. ${name || "(no name)"}, entry ${id}`), make("span", "", `distance ${near[1] ?? "\u2013"}`), make("span", "", `share ${percent(near[2])}`));
      item.append(context, from); list.append(item);
    });
    panel.append(close, head, box, said);
    if (!token[NEAR].length) panel.append(make("p", "soft", "No neighbors."));
    panel.append(list);
    const picture = plane(token[NEAR]);
    if (picture) panel.append(picture, make("p", "soft", "The query (square) and its neighbors by number, in the two directions in which these differ most. A projection: what is near here need not be near; the distances above count."));
    panel.scrollTop = 0;
  }
  function shut() {
    fixed = false; panel.classList.remove("open"); document.body.classList.remove("reading");
    if (chosen >= 0) { spans[chosen].classList.remove("chosen"); spans[chosen].removeAttribute("aria-current"); }
    chosen = -1; holder.focus();
  }
  const of = event => event.target.closest?.(".t");
  const pointer = matchMedia("(hover: hover)");
  holder.addEventListener("mouseover", event => { const span = of(event); if (span && !fixed && pointer.matches) choose(+span.dataset.i, false); });
  holder.addEventListener("click", event => { const span = of(event); if (!span) return; const i = +span.dataset.i; if (fixed && i === chosen) fixed = false; else choose(i, true); });
  holder.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    let i = chosen;
    if (event.key === "Escape") { shut(); return; }
    if (event.key === "Home") i = 0; else if (event.key === "End") i = tokens.length - 1;
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      if (chosen < 0) i = 0; else {
        const down = event.key === "ArrowDown" ? 1 : -1, here = spans[chosen].getBoundingClientRect();
        for (i = chosen + down; i >= 0 && i < spans.length; i += down) {
          const there = spans[i].getBoundingClientRect();
          if (down > 0 ? there.top > here.bottom - 2 && there.right >= here.left : there.bottom < here.top + 2 && there.left <= here.left) break;
        }
      }
    } else if (step) {
      if (chosen < 0) i = 0; else i += step;
      if (event.shiftKey) while (i > 0 && i < tokens.length - 1 && Math.abs(tokens[i][BITS]) < 1) i += step;
    } else return;
    event.preventDefault();
    choose(Math.max(0, Math.min(tokens.length - 1, i)), true);
    spans[chosen].scrollIntoView({ block: "nearest" });
  });
  document.querySelectorAll("input[name=colour]").forEach(input => input.addEventListener("change", () => paint(input.value)));
  paint("change");
})();
