"use strict";
// Builds the page from the JSON island. Names come from a target and are hostile: they reach the page by textContent alone.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const report = data.report;

  const el = (tag, props = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(props)) {
      if (value === null || value === undefined) continue;
      if (key === "class") node.className = value;
      else if (key === "text") node.textContent = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };
  const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  const size = (bytes) => {
    if (bytes === null || bytes === undefined) return "–";
    let value = Math.abs(bytes), unit = 0;
    while (value >= 1024 && unit < UNITS.length - 1) { value /= 1024; unit += 1; }
    return (bytes < 0 ? "-" : "") + (unit === 0 ? Math.round(value) : value.toFixed(1)) + " " + UNITS[unit];
  };
  const rate = (perSecond) => {
    if (perSecond === null || perSecond === undefined) return "unknown";
    const slow = Math.abs(perSecond) < 1024;
    const amount = slow ? perSecond * 3600 : perSecond;
    if (Math.round(Math.abs(amount)) === 0) return "no growth";
    return (amount > 0 ? "+" : "") + size(amount) + (slow ? "/h" : "/s");
  };
  const count = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en-US"));
  const share = (part, whole) => (whole > 0 ? ((part / whole) * 100).toFixed(1) + " %" : "–");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (index) => "--c" + Math.min(index, 8);

  const main = el("main");
  document.body.append(main);
  document.title = "offheap: " + data.title;

  const head = () => {
    const window_ = report.window;
    const facts = [data.duration + (window_.start ? " from " + window_.start.replace(/\.\d+Z$/, "Z") : ""), report.target.cmdline.join(" ")];
    const runtime = report.target.runtime;
    if (runtime) facts.push(runtime.name + (runtime.version ? " " + runtime.version : ""));
    main.append(
      el("h1", { text: data.title }),
      el("p", { class: "soft mono", text: facts.filter(Boolean).join(" · ") }),
    );
    if (data.warnings.length) {
      main.append(el("div", { class: "warnings", role: "note" }, ...data.warnings.map((text) => el("p", { text }))));
    }
    const verdict = report.verdict;
    const text = verdict && verdict.summary ? verdict.summary : data.headline;
    main.append(el("p", { class: "headline" },
      verdict && verdict.kind ? el("span", { class: "verdict", text: verdict.kind + ": " }) : null, text));
    main.append(...data.notes.map((text) => el("p", { class: "soft", text: "estimated: " + text })));
  };

  const tiles = () => {
    const box = el("div", { class: "tiles" });
    const tile = (what, value, more) => box.append(el("div", { class: "tile" },
      el("div", { class: "what", text: what }), el("div", { class: "value", text: value }),
      el("div", { class: "more", text: more })));
    if (report.rss) tile("RSS", size(report.rss.end_bytes), "from " + size(report.rss.start_bytes) + ", " + rate(report.rss.growth_bytes_per_s));
    const has = (lens) => report.lenses.includes(lens);
    const sum = (what, totals, noun) => tile(what, size(totals.outstanding_bytes) + (totals.outstanding_bytes_error == null ? "" : " ± " + size(totals.outstanding_bytes_error)),
      count(totals.outstanding_count) + " " + noun + ", " + rate(totals.growth_bytes_per_s));
    if (has("malloc")) sum("allocated, not freed", report.totals, "blocks");
    if (has("mmap") && report.totals.mapped) sum("mapped, not unmapped", report.totals.mapped, "mappings");
    if (has("faults") && report.totals.resident) sum("touched and resident", report.totals.resident, "pages");
    const limit = report.limits[0];
    if (limit) tile("limit", size(limit.limit_bytes), limit.used_bytes === null ? limit.source : share(limit.used_bytes, limit.limit_bytes) + " used, " + limit.source);
    const stacks = report.completeness.stacks;
    if (stacks.total) tile("whole stacks", share(stacks.whole, stacks.total), count(stacks.whole) + " of " + count(stacks.total));
    if (report.overhead) {
      const cpu = report.overhead.probe_cpu_percent;
      tile("overhead", cpu === null ? "not measured" : cpu.toFixed(2) + " % CPU", (report.overhead.target_percent === null ? "" : report.overhead.target_percent.toFixed(1) + " % of the target's CPU time with traps, ") + count(Math.round(report.overhead.probe_hits_per_s)) + " probe hits/s");
    }
    main.append(box);
  };

  // Charts: drawn anew when the width or the colours change.
  const charts = [];
  // Binary steps, so that labels are round.
  const STEPS = Array.from({ length: 60 }, (_, power) => 2 ** power);
  const span = (seconds) => {
    if (seconds < 300) return (Number.isInteger(seconds) ? seconds : seconds.toFixed(1)) + " s";
    return seconds < 18000 ? Math.round(seconds / 6) / 10 + " min" : Math.round(seconds / 360) / 10 + " h";
  };
  const axes = () => {
    const axis = { stroke: css("--soft"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line") }, font: "11px system-ui, sans-serif" };
    return [
      { ...axis, values: (_, values) => values.map(span) },
      { ...axis, size: 70, incrs: STEPS, values: (_, values) => values.map((value) => size(value)) },
    ];
  };
  const chart = (title, source, stacked, hint) => {
    if (!source || source.seconds.length < 2 || !source.columns.length) return null;
    let columns = source.columns;
    if (columns.length > 8) {
      const rest = columns.slice(7);
      const bytes = source.seconds.map((_, at) => rest.reduce((sum, column) => sum + (column.bytes[at] || 0), 0));
      columns = columns.slice(0, 7).concat(stacked ? [{ name: "other", bytes }] : []);
    }
    const place = el("div", { class: "chart", role: "img", "aria-label": title + ": " + columns.map((column) => column.name + " " + size(column.bytes[column.bytes.length - 1])).join(", ") });
    const numbers = columns.map((column) => el("span", { class: "number", text: size(column.bytes[column.bytes.length - 1]) }));
    const legend = el("ul", { class: "legend" }, ...columns.map((column, index) => {
      const swatch = el("span", { class: "swatch" });
      swatch.style.background = "var(" + colour(index) + ")";
      return el("li", {}, swatch, el("span", { class: "label", text: column.name, title: column.name }), numbers[index]);
    }));
    const moment = el("p", { class: "soft", text: hint });
    const drawn = [source.seconds];
    // The first column lies at the bottom: each line is the sum of its own and those before it.
    const sums = source.seconds.map(() => 0);
    for (const column of columns) {
      drawn.push(stacked ? column.bytes.map((bytes, at) => (sums[at] += bytes || 0)) : column.bytes);
    }
    let plot = null;
    const draw = () => {
      if (plot) plot.destroy();
      const width = Math.max(200, place.clientWidth);
      const series = columns.map((column, index) => {
        const stroke = css(colour(index));
        return { label: column.name, stroke, width: stacked ? 1 : 2, fill: stacked ? stroke + "cc" : undefined, points: { show: source.seconds.length < 20 && !stacked } };
      });
      const bands = stacked ? columns.slice(1).map((_, index) => ({ series: [index + 2, index + 1] })) : [];
      plot = new uPlot({
        width, height: 240, legend: { show: false }, axes: axes(), bands,
        scales: { x: { time: false }, y: { range: (_, low, high) => [stacked ? 0 : low - (high - low) * 0.05, high + (high - low || high || 1) * 0.05] } },
        cursor: { points: { show: false } },
        series: [{}, ...series],
        hooks: { setCursor: [(self) => {
          const at = self.cursor.idx === null || self.cursor.idx === undefined ? source.seconds.length - 1 : self.cursor.idx;
          columns.forEach((column, index) => { numbers[index].textContent = size(column.bytes[at]); });
          moment.textContent = self.cursor.idx === null || self.cursor.idx === undefined ? hint : "at " + span(source.seconds[at]);
        }] },
      }, drawn, place);
    };
    charts.push(draw);
    return el("section", { class: "card" }, el("h2", { text: title }), moment, place, legend);
  };
  const timelines = () => {
    const columns = (rows) => ({ seconds: data.lines.seconds, columns: rows });
    const parts = [
      chart("Memory of the process", data.rss, false, "values at the end; point at the picture for others"),
      chart("Where RSS lies, over time", data.ledger, true, "resident bytes by class, stacked"),
      chart("Largest call sites: not freed", columns(data.lines.unfreed), false, "outstanding bytes"),
      chart("Largest call sites: resident", columns(data.lines.resident), false, "resident bytes of pages touched while recording"),
    ].filter(Boolean);
    if (parts.length) main.append(el("div", { class: "pair" }, ...parts));
  };

  // Flame graph: the root on top, the callees below their caller.
  const flames = () => {
    const kinds = [["unfreed", "not freed"], ["resident", "resident"]].filter(([kind]) => data.flames[kind]);
    if (!kinds.length) return;
    const names = data.flames.names;
    const box = el("div", { class: "flame", role: "group", "aria-label": "flame graph: arrow keys move, Enter zooms, Escape resets" });
    const detail = el("p", { class: "detail mono", "aria-live": "polite" });
    const search = el("input", { type: "search", placeholder: "search functions", "aria-label": "search functions" });
    const reset = el("button", { type: "button", text: "reset zoom" });
    const found = el("span", { class: "soft" });
    const buttons = kinds.map(([kind, text]) => el("button", { type: "button", text, "aria-pressed": "false", onclick: () => show(kind) }));
    let root = null, zoomed = null, kind = null, frames = [];
    const build = (raw, parent) => {
      const node = { name: names[raw[0]], bytes: raw[1], parent, depth: parent ? parent.depth + 1 : 0, children: [] };
      node.children = raw[2].map((child) => build(child, node));
      return node;
    };
    const hue = (name) => {
      let hash = 0;
      for (let at = 0; at < name.length; at += 1) hash = (hash * 31 + name.charCodeAt(at)) % 9973;
      return name.startsWith("[") ? "hsl(210 10% 72%)" : "hsl(" + (18 + (hash % 40)) + " " + (62 + (hash % 25)) + "% " + (64 + (hash % 12)) + "%)";
    };
    const describe = (node) => { detail.textContent = node.name + " — " + size(node.bytes) + " (" + share(node.bytes, root.bytes) + " of " + size(root.bytes) + ")"; };
    const matches = (node) => { const text = search.value.toLowerCase(); return text !== "" && node.name.toLowerCase().includes(text); };
    const searchAll = () => {
      if (search.value === "") { found.textContent = ""; return; }
      // A match below a match is not counted twice.
      const sum = (node) => (matches(node) ? node.bytes : node.children.reduce((total, child) => total + sum(child), 0));
      const bytes = sum(root);
      found.textContent = size(bytes) + " (" + share(bytes, root.bytes) + ") below matching functions";
    };
    const draw = (focus) => {
      const width = Math.max(200, box.clientWidth);
      frames = [];
      const add = (node, left, pixels, dim) => {
        if (pixels < 1) return;
        const button = el("button", { type: "button", class: "frame" + (dim ? " dim" : "") + (matches(node) ? " hit" : ""), tabindex: "-1",
          title: node.name + "\n" + size(node.bytes), "aria-label": node.name + ", " + size(node.bytes) });
        button.style.left = left + "px";
        button.style.top = node.depth * 20 + "px";
        button.style.width = Math.max(1, pixels - 1) + "px";
        if (pixels < 10) button.style.padding = "0";
        button.style.background = hue(node.name);
        if (pixels >= 24) button.textContent = node.name;
        button.addEventListener("click", () => zoom(node));
        button.addEventListener("focus", () => describe(node));
        button.addEventListener("mouseenter", () => describe(node));
        const frame = { node, button, left };
        node.frame = frame;
        frames.push(frame);
      };
      const forget = (node) => { node.frame = null; node.children.forEach(forget); };
      forget(root);
      const path = [];
      for (let node = zoomed.parent; node; node = node.parent) path.unshift(node);
      path.forEach((node) => add(node, 0, width, true));
      const place = (node, left, pixels) => {
        if (pixels < 1) return;
        add(node, left, pixels, false);
        let at = left;
        for (const child of node.children) {
          const part = node.bytes > 0 ? (pixels * child.bytes) / node.bytes : 0;
          place(child, at, part);
          at += part;
        }
      };
      place(zoomed, 0, width);
      const deepest = frames.reduce((depth, frame) => Math.max(depth, frame.node.depth), 0);
      const inner = el("div");
      inner.style.height = (deepest + 1) * 20 + "px";
      inner.append(...frames.map((frame) => frame.button));
      box.replaceChildren(inner);
      const first = (focus || zoomed).frame || zoomed.frame;
      if (first) { first.button.tabIndex = 0; if (focus) first.button.focus(); }
      searchAll();
    };
    const zoom = (node) => { zoomed = node; draw(node); describe(node); };
    const move = (node) => {
      if (!node || !node.frame) return;
      frames.forEach((frame) => { frame.button.tabIndex = -1; });
      node.frame.button.tabIndex = 0;
      node.frame.button.focus();
    };
    const beside = (node, step) => {
      const siblings = node.parent ? node.parent.children.filter((child) => child.frame) : [];
      return siblings[siblings.indexOf(node) + step];
    };
    box.addEventListener("keydown", (event) => {
      const current = frames.find((frame) => frame.button === document.activeElement);
      if (!current) return;
      const node = current.node;
      const keys = {
        ArrowDown: () => move(node.children.find((child) => child.frame)),
        ArrowUp: () => move(node.parent),
        ArrowLeft: () => move(beside(node, -1)),
        ArrowRight: () => move(beside(node, 1)),
        Home: () => move(root),
        Escape: () => zoom(root),
      };
      if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
    });
    const show = (wanted) => {
      kind = wanted;
      root = build(data.flames[kind], null);
      zoomed = root;
      buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(kinds[index][0] === kind)));
      draw(null);
      describe(root);
    };
    reset.addEventListener("click", () => zoom(root));
    search.addEventListener("input", () => draw(null));
    search.addEventListener("keydown", (event) => {
      if (event.key === "Enter") { const hit = frames.find((frame) => matches(frame.node)); if (hit) move(hit.node); }
    });
    main.append(el("section", { class: "card" },
      el("div", { class: "row" }, el("h2", { text: "Flame graph" }), ...(buttons.length > 1 ? buttons : []), search, reset),
      box, detail, found));
    show(kinds[0][0]);
    charts.push(() => draw(null));
  };

  const cells = (values, texts) => values.map((value, index) => el("td", { class: texts.includes(index) ? "text" : null, text: value }));
  const table = (titles, rows, texts = []) => el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ...titles.map((title, index) => el("th", { scope: "col", class: texts.includes(index) ? "text" : null, text: title })))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row, texts))))));

  const ledger = () => {
    // What came and went in between is in the picture.
    const rows = ((report.rss && report.rss.ledger) || []).filter((row) => row.bytes > 0 || row.start_bytes > 0);
    if (rows.length) {
      main.append(el("section", { class: "card" }, el("h2", { text: "Where RSS lies" }),
        table(["resident", "share", "change", "growth", "swapped", "class", "what"],
          rows.slice(0, 60).map((row) => [size(row.bytes), share(row.bytes, rows.reduce((sum, other) => sum + other.bytes, 0)),
            (row.bytes > row.start_bytes ? "+" : "") + size(row.bytes - row.start_bytes), rate(row.growth_bytes_per_s), size(row.swap_bytes), row.class, row.label || ""]), [5, 6])));
    }
    if (report.figures.length) {
      main.append(el("section", { class: "card" }, el("h2", { text: "What the runtime says itself" }),
        table(["now", "at first", "figure", "from"], report.figures.map((row) => [row.bytes === null ? "not readable" : size(row.bytes), size(row.start_bytes), row.name, row.source]), [2, 3])));
    }
    if (report.mappings.length) {
      main.append(el("section", { class: "card" }, el("h2", { text: "Memory of the runtime and of allocators (not counted as leaks)" }),
        table(["bytes", "growth", "seen as", "class", "what", "advice"], report.mappings.slice(0, 60).map((row) => [size(row.outstanding_bytes), rate(row.growth_bytes_per_s),
          row.lens === "faults" ? "pages" : "mappings", row.class, [...new Set([row.allocator, row.label])].filter(Boolean).join(", "), row.advice || ""]), [2, 3, 4, 5])));
    }
  };

  const sites = () => {
    if (!report.lenses.length) return;
    const rows = report.sites.map((site, index) => ({ site, label: data.labels.sites[index] }));
    const columns = [
      ["#", (row) => row.site.rank], ["function", (row) => row.label, true], ["lens", (row) => row.site.lens, true], ["verdict", (row) => row.site.verdict, true],
      ["outstanding", (row) => row.site.outstanding_bytes, false, size], ["count", (row) => row.site.outstanding_count, false, count],
      ["growth", (row) => row.site.growth_bytes_per_s, false, rate], ["resident", (row) => row.site.resident_bytes, false, size],
      ["allocated", (row) => row.site.allocated_bytes, false, size], ["freed", (row) => row.site.freed_bytes, false, size],
      ["what", (row) => row.site.label || row.site.class, true],
    ].filter(([title]) => title !== "verdict" || rows.some((row) => row.site.verdict));
    const body = el("tbody");
    const filter = el("input", { type: "search", placeholder: "filter by function or object", "aria-label": "filter call sites" });
    const headers = [];
    let by = null, falling = true;
    const text = (row) => [row.label, row.site.lens, row.site.class, row.site.label, ...row.site.stack.map((line) => [line.function, line.object].join(" "))].join(" ").toLowerCase();
    rows.forEach((row) => { row.text = text(row); });
    const stack = (site) => el("ol", { class: "stack" }, ...site.stack.map((line, index) => {
      const base = (path) => path.slice(path.lastIndexOf("/") + 1) || path;
      const place = [line.file ? base(line.file) + (line.line ? ":" + line.line : "") : null, line.object ? base(line.object) : null, line.inlined ? "inlined" : null].filter(Boolean).join("  ");
      return el("li", { class: index === site.culprit ? "culprit" : null, title: [line.file, line.object].filter(Boolean).join("\n"), text: (line.function || line.offset || "?") + (place ? "  " + place : "") });
    }), site.stack_end === "thread-start" ? null : el("li", { text: "[" + (site.stack_lost ? "stack lost" : "ends: " + site.stack_end) + "]" }));
    const fill = () => {
      const wanted = filter.value.toLowerCase();
      let shown = rows.filter((row) => row.text.includes(wanted));
      if (by !== null) {
        const key = columns[by][1];
        const rank = (value) => (value === null || value === undefined ? -Infinity : value);
        shown = shown.slice().sort((a, b) => {
          const [left, right] = [key(a), key(b)];
          const order = columns[by][2] ? String(left).localeCompare(String(right)) : rank(left) - rank(right);
          return falling ? -order : order;
        });
      }
      body.replaceChildren(...shown.flatMap((row) => {
        // The stack has a row of its own, as wide as the table.
        const place = el("td", { class: "name", colspan: String(columns.length) });
        const below = el("tr", { hidden: "" }, place);
        const open = el("button", { type: "button", class: "open", "aria-expanded": "false", text: row.label });
        open.addEventListener("click", () => {
          if (!place.firstChild) place.append(stack(row.site));
          below.hidden = !below.hidden;
          open.setAttribute("aria-expanded", String(!below.hidden));
        });
        return [el("tr", {}, ...columns.map(([title, key, isText, format]) => (title === "function"
          ? el("td", { class: "name" }, open)
          : el("td", { class: isText ? "text" : null, text: format ? format(key(row)) : String(key(row) ?? "–") })))), below];
      }));
      headers.forEach((header, index) => {
        if (index === by) header.setAttribute("aria-sort", falling ? "descending" : "ascending");
        else header.removeAttribute("aria-sort");
      });
    };
    columns.forEach(([title, , isText], index) => headers.push(el("th", { scope: "col", class: isText ? "text" : null },
      el("button", { type: "button", text: title, onclick: () => { falling = by === index ? !falling : true; by = index; fill(); } }))));
    filter.addEventListener("input", fill);
    main.append(el("section", { class: "card" },
      el("div", { class: "row" }, el("h2", { text: "Call sites" }), filter),
      el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ...headers)), body)),
      data.cut ? el("p", { class: "soft", text: count(data.cut) + " smaller call sites are in the sums and flame graphs only" }) : null));
    fill();
  };

  const completeness = () => {
    const known = report.completeness;
    const losses = known.losses.filter((loss) => loss.count > 0);
    const rows = losses.map((loss) => [loss.reason, count(loss.count), loss.bytes ? size(loss.bytes) : "–", loss.incomplete ? "yes" : "no"]);
    const broken = known.stacks.broken.map((row) => [row.function || "the allocator's caller", row.stack_end, count(row.stacks)]);
    main.append(el("section", { class: "card" }, el("h2", { text: "Completeness" }),
      el("p", { text: known.complete ? "Everything that was asked for was recorded." : "Data is missing: the numbers above are lower bounds where a loss says so." }),
      rows.length ? table(["reason", "times", "bytes", "makes the result incomplete"], rows, [0]) : null,
      broken.length ? el("p", { class: "soft", text: "Stacks that break off:" }) : null,
      broken.length ? table(["at", "because", "stacks"], broken, [0, 1]) : null,
      ...report.hints.map((text) => el("p", { text: "hint: " + text }))));
    main.append(el("footer", { text: "Recorded by offheap " + data.version + ". Sizes are binary: 1 KiB is 1024 bytes." }));
  };

  head(); tiles(); timelines(); flames(); ledger(); sites(); completeness();
  const redraw = () => charts.forEach((draw) => draw());
  redraw();
  let waiting = 0;
  addEventListener("resize", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(redraw); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  document.documentElement.dataset.ready = "yes";
})();
