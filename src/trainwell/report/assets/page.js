/* What a page does by itself: other axes, light and dark, a search, and staying where it is when it loads again. */
"use strict";
(() => {
  const page = JSON.parse(document.getElementById("page").textContent);
  const root = document.documentElement;
  const place = `trainwell:${location.pathname}`;
  const remember = (store, key, value) => { try { store.setItem(key, value); } catch { /* no storage: nothing stays */ } };
  const recall = (store, key) => { try { return store.getItem(key); } catch { return null; } };
  history.scrollRestoration = "manual";
  const before = JSON.parse(recall(sessionStorage, place) || "null") || {};
  const state = { axis: before.axis || "step", scale: before.scale || "linear", view: before.view || null };
  const each = (selector, act) => document.querySelectorAll(selector).forEach(act);

  const models = () => Bokeh.documents.flatMap((doc) => [...doc._all_models.values()]);
  const pressed = (selector, key, value) =>
    each(selector, (button) => button.setAttribute("aria-pressed", String(button.dataset[key] === value)));

  /* ---- axes: every source over steps is laid out anew over what was asked for; a straight line between two knots */
  const between = (at, from, to) => {
    let low = 0, high = from.length - 1;
    if (high < 1 || at <= from[0]) return high < 0 ? at : to[0] + (at - from[0]);
    if (at >= from[high]) {
      const slope = (to[high] - to[high - 1]) / (from[high] - from[high - 1] || 1);
      return to[high] + (at - from[high]) * (Number.isFinite(slope) ? slope : 1);
    }
    while (high - low > 1) { const middle = (low + high) >> 1; if (from[middle] <= at) low = middle; else high = middle; }
    return to[low] + (to[high] - to[low]) * (at - from[low]) / (from[high] - from[low] || 1);
  };
  const steps = new Map();
  const forward = (step) => between(step, page.knots, page.axes[state.axis].values);
  const back = (value) => between(value, page.axes[state.axis].values, page.knots);
  const ranges = () => models().filter((model) => model.name === "steps");
  const labels = () => Object.values(page.axes).map((axis) => axis.label);

  const look = () => {
    const [start, end] = state.view || page.whole;
    for (const range of ranges()) range.setv({ start: forward(start), end: forward(end) });
  };
  const noteView = () => {
    const range = ranges()[0];
    if (!range) return;
    const seen = [back(range.start), back(range.end)], size = page.whole[1] - page.whole[0];
    const isWhole = seen.every((value, side) => Math.abs(value - page.whole[side]) < 1e-6 * size);
    state.view = isWhole ? null : seen;
  };
  const overAxis = (axis) => {
    noteView();
    const old = labels();
    state.axis = page.axes[axis] ? axis : Object.keys(page.axes)[0];
    for (const model of models()) {
      if (model.type === "ColumnDataSource" && model.data.x) {
        if (!steps.has(model)) steps.set(model, Float64Array.from(model.data.x));
        const own = steps.get(model);
        model.data = { ...model.data, step: own, x: own.map(forward) };
      } else if (old.includes(model.axis_label)) {
        model.axis_label = page.axes[state.axis].label;
      }
    }
    for (const range of ranges()) range.setv({ reset_start: forward(page.whole[0]), reset_end: forward(page.whole[1]) });
    look();
    pressed("[data-axis]", "axis", state.axis);
  };

  /* ---- two figures of one chart, one of them in sight */
  const onScale = (scale) => {
    state.scale = scale;
    for (const model of models()) {
      const kinds = (model.tags || []).find((tag) => tag && tag.scale);
      if (kinds) model.visible = kinds.scale === scale;
    }
    pressed("[data-scale]", "scale", scale);
  };

  /* ---- light and dark: the page by its own variables, the charts by a table of colours */
  let charted = "light";
  const paint = (theme) => {
    root.dataset.theme = theme;
    if (theme === charted || !page.colours) return;
    const table = new Map(page.colours.map(([light, dark]) => (theme === "dark" ? [light, dark] : [dark, light])));
    charted = theme;
    for (const model of models()) {
      const change = {};
      for (const property of model) {
        if (!property.attr.endsWith("_color")) continue;
        const value = model[property.attr];
        if (typeof value === "string" && table.has(value)) change[property.attr] = table.get(value);
        else if (value && table.has(value.value)) change[property.attr] = { ...value, value: table.get(value.value) };
      }
      if (Object.keys(change).length) model.setv(change);
    }
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const wanted = () => recall(localStorage, "trainwell:theme") || (dark.matches ? "dark" : "light");
  root.dataset.theme = wanted();
  dark.addEventListener("change", () => paint(wanted()));
  addEventListener("beforeprint", () => paint("light"));
  addEventListener("afterprint", () => paint(wanted()));
  document.getElementById("theme").addEventListener("click", () => {
    remember(localStorage, "trainwell:theme", root.dataset.theme === "dark" ? "light" : "dark");
    paint(wanted());
  });

  /* ---- search */
  const search = document.getElementById("search");
  const filter = () => {
    const asked = search.value.trim().toLowerCase();
    each("#settings tr:not(:first-child)", (row) => { row.hidden = !row.textContent.toLowerCase().includes(asked); });
  };
  if (search) {
    search.value = before.search || "";
    search.addEventListener("input", filter);
    filter();
  }

  /* ---- staying where it is */
  const stay = () => {
    noteView();
    remember(sessionStorage, place, JSON.stringify({ ...state, scroll: scrollY, search: search ? search.value : "" }));
  };
  addEventListener("pagehide", stay);
  if (page.reload) setTimeout(() => { stay(); location.reload(); }, 1000 * page.reload);
  const ready = () => {
    if (before.scroll) scrollTo({ top: before.scroll, behavior: "instant" });
    root.dataset.ready = String(Math.round(performance.now()));
  };

  if (!page.items) { ready(); return; }
  Bokeh.embed.embed_items(page.docs, page.items).then(() => {
    if (matchMedia("(pointer: coarse)").matches) {
      for (const model of models()) if (model.type === "BoxZoomTool") model.active = false; // a finger scrolls the page
    }
    const view = state.view, axis = state.axis;
    state.axis = "step";
    overAxis(axis);
    state.view = view;
    look();
    onScale(state.scale);
    paint(wanted());
    each("[data-axis]", (button) => button.addEventListener("click", () => overAxis(button.dataset.axis)));
    each("[data-scale]", (button) => button.addEventListener("click", () => onScale(button.dataset.scale)));
    each("#whole", (button) => button.addEventListener("click", () => { state.view = null; look(); }));
    ready();
  });
})();
