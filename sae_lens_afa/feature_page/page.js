"use strict";
// Reads the packed content and shows it. Texts of the model and the data come in as text nodes only, never as HTML.
(async () => {
  const NONE = 0xffffffff, PER_PAGE = 50, INK = "#1b1f24", ORANGE = "213, 94, 0";
  const byId = (id) => document.getElementById(id);

  const unpack = async () => {
    const raw = Uint8Array.from(atob(byId("data").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("gzip"));
    const bytes = await new Response(stream).arrayBuffer();
    const length = Number(new DataView(bytes).getBigUint64(0, true));
    const about = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 8, length)));
    const arrays = {};
    for (const [name, { type, shape, offset }] of Object.entries(about.arrays)) {
      const size = shape.reduce((a, b) => a * b, 1);
      const data = new globalThis[type](bytes, 8 + length + offset, size);
      const width = size && shape[0] ? size / shape[0] : 0;
      arrays[name] = { data, width, row: (i) => data.subarray(i * width, (i + 1) * width) };
    }
    return { about, arrays };
  };
  const { about, arrays } = await unpack();
  const column = (name) => arrays[name].data;
  const count = about.d_sae, context = about.context;

  // ---- making elements

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  };
  const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  const token = (text) => make("span", { class: "token" }, visible(text) || "∅");
  const latentLink = (latent) => make("a", { href: `#latent=${latent}` }, String(latent));
  const number = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
  };
  const percent = (value) => (value < 1e-4 && value > 0 ? "<0.01 %" : `${(100 * value).toFixed(2)} %`);

  // ---- the table

  const isDead = (latent) => column("density")[latent] === 0;
  const strongestToken = (latent) => {
    const place = arrays.strongest.row(latent)[0];
    return place === NONE ? "" : about.texts[column("text")[place]];
  };
  const COLUMNS = [
    ["latent", (i) => i, String],
    ["density", (i) => column("density")[i], percent],
    ["mean", (i) => column("mean")[i], number],
    ["max", (i) => column("max")[i], number],
    ["energy", (i) => column("energy_share")[i], percent],
    ["nearest, cosine", (i) => (arrays.cosine.width ? arrays.cosine.row(i)[0] : 0), (v, i) =>
      arrays.nearest.width ? `${arrays.nearest.row(i)[0]}, ${v.toFixed(2)}` : ""],
    ["strongest token", strongestToken, null],
  ];
  let sorted = 4, descending = true, from = 0, found = [], chosen = null;

  let searchTexts = null; // one text a latent, made when the first word is searched for
  const searchText = (latent) => {
    if (searchTexts === null) searchTexts = new Array(count);
    if (searchTexts[latent] === undefined) {
      const tokens = [...arrays.strongest.row(latent)].filter((p) => p !== NONE).map((p) => column("text")[p]);
      const written = arrays.promoted ? arrays.promoted.row(latent) : [];
      const half = written.length / 2;
      searchTexts[latent] = [...tokens, ...written.slice(0, half)].map((t) => about.texts[t]).join("\n").toLowerCase();
    }
    return searchTexts[latent];
  };
  const search = () => {
    const wanted = byId("search").value.toLowerCase(), withDead = byId("dead").checked;
    const isNumber = /^\d+$/.test(wanted.trim());
    found = [];
    for (let i = 0; i < count; i++) {
      if (isNumber && i === Number(wanted)) { found.unshift(i); continue; }
      if (!withDead && isDead(i)) continue;
      if (wanted.trim() === "" || searchText(i).includes(isNumber ? wanted.trim() : wanted)) found.push(i);
    }
    order(isNumber ? Number(wanted) : null);
  };
  const order = (first = null) => {
    const value = COLUMNS[sorted][1], sign = descending ? -1 : 1;
    const keys = new Map(found.map((i) => [i, value(i)]));
    found.sort((a, b) => {
      if (a === first || b === first) return a === first ? -1 : 1;
      const [x, y] = [keys.get(a), keys.get(b)];
      return x < y ? -sign : x > y ? sign : a - b;
    });
    from = 0;
    drawTable();
  };
  const drawTable = () => {
    byId("columns").replaceChildren(...COLUMNS.map(([name], i) => {
      const direction = i !== sorted ? "none" : descending ? "descending" : "ascending";
      const click = () => {
        descending = i === sorted ? !descending : i !== 0 && i !== COLUMNS.length - 1;
        sorted = i;
        order();
      };
      return make("th", { "aria-sort": direction, scope: "col" }, make("button", { type: "button", onclick: click }, name));
    }));
    byId("rows").replaceChildren(...found.slice(from, from + PER_PAGE).map((latent) => make("tr",
      { "data-latent": latent, class: latent === chosen ? "here" : null, onclick: () => go(`latent=${latent}`) },
      ...COLUMNS.map(([name, value, shown], i) => make("td", {},
        i === 0 ? latentLink(latent) : shown === null ? token(value(latent))
        : isDead(latent) && i < 5 ? "dead" : shown(value(latent), latent))))));
    const last = Math.min(from + PER_PAGE, found.length);
    byId("page").textContent = found.length ? `${from + 1} to ${last} of ${found.length}` : "none";
    byId("count").textContent = `${found.length} of ${count} latents`;
    byId("back").disabled = from === 0;
    byId("on").disabled = last === found.length;
  };

  // ---- charts

  const LAYOUT = { margin: { l: 52, r: 8, t: 6, b: 38 }, font: { size: 12, color: INK }, showlegend: false,
    paper_bgcolor: "transparent", plot_bgcolor: "transparent" };
  const DECADES = { type: "log", dtick: 1, exponentformat: "power" };
  const CONFIG = { displayModeBar: false, responsive: true };
  const drawOverview = () => {
    const alive = [...Array(count).keys()].filter((i) => !isDead(i));
    const at = (name) => alive.map((i) => column(name)[i]);
    const chart = byId("overview");
    Plotly.newPlot(chart, [{ type: "scattergl", mode: "markers", x: at("density"), y: at("mean"), customdata: alive,
      marker: { size: 5, opacity: 0.6, color: at("energy_share").map((v) => Math.log10(v + 1e-12)), colorscale: "Viridis",
        cmin: -6, cmax: -1, colorbar: { title: { text: "energy", side: "right" }, thickness: 10, tickvals: [-6, -5, -4, -3, -2, -1],
          ticktext: ["10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³", "1 %", "10 %"] } },
      hovertemplate: "latent %{customdata}<br>density %{x:.2e}<br>mean %{y:.3g}<extra></extra>" }],
    { ...LAYOUT, xaxis: { ...DECADES, title: { text: "density" } }, yaxis: { ...DECADES, title: { text: "mean activation" } } },
    CONFIG);
    chart.on("plotly_click", (event) => go(`latent=${event.points[0].customdata}`));
  };
  const drawHistogram = (place, latent) => {
    const bins = arrays.histogram.row(latent), edges = column("bin_edges");
    const used = [...bins.keys()].filter((i) => bins[i] > 0);
    const [low, high] = [used[0], used[used.length - 1]];
    const shown = [...bins.keys()].slice(low, high + 1);
    Plotly.newPlot(place, [{ type: "bar", x: shown.map((i) => Math.sqrt(edges[i] * edges[i + 1])),
      y: shown.map((i) => bins[i]), width: shown.map((i) => edges[i + 1] - edges[i]), marker: { color: "#0072b2" },
      hovertemplate: "%{y} tokens around %{x:.3g}<extra></extra>" }],
    { ...LAYOUT, bargap: 0, xaxis: { type: "log", title: { text: "activation" }, nticks: 6 },
      yaxis: { title: { text: "tokens" } } }, CONFIG);
  };

  // ---- a latent's card

  const example = (name, latent, i) => {
    const place = arrays[name].row(latent)[i], { before, after } = about, width = before + 1 + after;
    const shade = arrays[`${name}_shade`].row(latent).subarray(i * width, (i + 1) * width);
    const value = arrays[`${name}_value`].row(latent)[i];
    const parts = [];
    for (let offset = -before; offset <= after; offset++) {
      const position = (place % context) + offset;
      if (position < 0 || position >= context) continue;
      const alpha = shade[offset + before] / 255;
      parts.push(make(offset === 0 ? "b" : "span",
        { style: alpha > 0 ? `background: rgba(${ORANGE}, ${(0.1 + 0.75 * alpha).toFixed(2)})` : null,
          title: alpha > 0 ? `${Math.round(100 * alpha)} % of its largest` : null },
        visible(about.texts[column("text")[place + offset]])));
    }
    return make("p", { class: "context token" }, make("span", { class: "value" }, number(value)), ...parts);
  };
  const places = (name, latent) => [...arrays[name].row(latent).keys()].filter((i) => arrays[name].row(latent)[i] !== NONE);
  const examples = (name, latent, wanted) => wanted.map((i) => example(name, latent, i));
  const related = (title, name, scores, latent) => {
    const rows = [...arrays[name].row(latent)].map((other, i) => [other, arrays[scores].row(latent)[i]])
      .filter(([other]) => other !== NONE)
      .map(([other, score]) => make("tr", {}, make("td", {}, latentLink(other)), make("td", {}, score.toFixed(2)),
        make("td", {}, token(strongestToken(other)))));
    return make("div", {}, make("h3", {}, title), rows.length ? make("table", {}, ...rows) : make("p", { class: "soft" }, "none"));
  };
  const written = (title, latent, wanted) => make("div", {}, make("h3", {}, title), make("table", {}, ...wanted.map((i) =>
    make("tr", {}, make("td", {}, token(about.texts[arrays.promoted.row(latent)[i]])),
      make("td", {}, arrays.promoted_logit.row(latent)[i].toFixed(2))))));
  const drawCard = (latent) => {
    const card = byId("card"), strongest = places("strongest", latent), sampled = places("sampled", latent);
    const facts = isDead(latent) ? "dead: no token of this text activates it" :
      `active on ${percent(column("density")[latent])} of tokens, mean ${number(column("mean")[latent])}, ` +
      `max ${number(column("max")[latent])}, ${percent(column("energy_share")[latent])} of all energy`;
    const parts = [make("h2", {}, `Latent ${latent}`), make("p", { class: "soft" }, facts)];
    if (strongest.length) {
      parts.push(make("h3", {}, "Strongest, each in another prompt"), ...examples("strongest", latent, strongest));
      parts.push(make("h3", {}, "Activations"), make("div", { id: "histogram" }));
      parts.push(make("h3", {}, "A fair sample of its tokens, strongest first"));
      const quarter = Math.ceil(sampled.length / 4);
      for (let q = 0; q * quarter < sampled.length; q++) {
        const names = ["strongest quarter", "second quarter", "third quarter", "weakest quarter"];
        if (quarter > 1) parts.push(make("p", { class: "soft" }, names[q]));
        parts.push(...examples("sampled", latent, sampled.slice(q * quarter, (q + 1) * quarter)));
      }
    }
    if (arrays.promoted) {
      const half = arrays.promoted.width / 2, all = [...Array(2 * half).keys()];
      parts.push(make("div", { class: "columns" }, written("Promotes", latent, all.slice(0, half)),
        written("Suppresses", latent, all.slice(half).reverse())));
    } else {
      parts.push(make("h3", {}, "Promoted tokens"), make("p", { class: "soft" },
        "not known: the model does not write what is at this hook point to its residual stream directly"));
    }
    parts.push(make("div", { class: "columns" }, related("Nearest, cosine of decoder rows", "nearest", "cosine", latent),
      related("Active together, share", "companion", "together", latent)));
    card.replaceChildren(...parts);
    card.scrollTop = 0;
    if (strongest.length) drawHistogram(byId("histogram"), latent);
  };

  // ---- tokens, taken apart

  const drawTokens = () => {
    const paragraphs = [];
    let prompt = null;
    column("token_place").forEach((place, i) => {
      if (Math.floor(place / context) !== prompt) {
        prompt = Math.floor(place / context);
        paragraphs.push(make("p"));
      }
      paragraphs[paragraphs.length - 1].append(make("button",
        { type: "button", "data-token": i, onclick: () => go(`token=${i}`) }, visible(about.texts[column("text")[place]]) || "∅"));
    });
    byId("token-text").replaceChildren(...paragraphs);
  };
  const drawToken = (i) => {
    document.querySelectorAll("#token-text .here").forEach((other) => other.classList.remove("here"));
    document.querySelector(`[data-token="${i}"]`).classList.add("here");
    const place = column("token_place")[i], share = arrays.token_share.row(i);
    const listed = [...arrays.token_latent.row(i)].map((latent, j) => [latent, j]).filter(([latent]) => latent !== NONE);
    const l0 = column("token_l0")[i], largest = share[0] || 1;
    const head = ["latent", "activation", ...(arrays.token_stage ? ["stage"] : []), "energy", "", "its strongest token"];
    const rows = listed.map(([latent, j]) => make("tr", { onclick: () => go(`latent=${latent}`) },
      make("td", {}, latentLink(latent)), make("td", {}, number(arrays.token_value.row(i)[j])),
      ...(arrays.token_stage ? [make("td", {}, String(arrays.token_stage.row(i)[j]))] : []),
      make("td", {}, percent(share[j])),
      make("td", { style: "text-align: left" }, make("span", { class: "bar", style: `width: ${Math.round((80 * share[j]) / largest)}px` })),
      make("td", {}, token(strongestToken(latent)))));
    byId("token-card").replaceChildren(
      make("h2", {}, token(about.texts[column("text")[place]])),
      make("p", { class: "soft" }, `${l0} features; ‖f‖ / ‖z‖ = ${number(column("token_norm_ratio")[i])}; ` +
        `explained ${percent(column("token_explained")[i])}` + (l0 > listed.length ? `; the ${listed.length} strongest:` : "")),
      make("div", { class: "scrolled" }, make("table", {}, make("thead", {}, make("tr", {}, ...head.map((h) => make("th", { scope: "col" }, h)))),
        make("tbody", {}, ...rows))));
  };

  // ---- where the reader is: the part of the address after #

  const go = (where) => { if (location.hash !== `#${where}`) location.hash = where; };
  const show = () => {
    const [what, value] = location.hash.slice(1).split("=");
    const i = /^\d+$/.test(value || "") ? Number(value) : null;
    const onTokens = what === "tokens" || what === "token";
    byId("latents").hidden = onTokens;
    byId("tokens").hidden = !onTokens;
    byId("to-latents").classList.toggle("here", !onTokens);
    byId("to-tokens").classList.toggle("here", onTokens);
    if (what === "latent" && i !== null && i < count) {
      chosen = i;
      byId("latents").classList.add("chosen");
      drawCard(i);
      document.querySelectorAll("#rows tr").forEach((row) => row.classList.toggle("here", Number(row.dataset.latent) === i));
    }
    if (what === "token" && i !== null && i < column("token_place").length) {
      byId("tokens").classList.add("chosen");
      drawToken(i);
    }
    if (!onTokens && !byId("overview").hasChildNodes()) drawOverview();
  };

  byId("search-form").addEventListener("submit", (event) => event.preventDefault());
  byId("search").addEventListener("input", search);
  byId("dead").addEventListener("change", search);
  byId("back").addEventListener("click", () => { from = Math.max(0, from - PER_PAGE); drawTable(); });
  byId("on").addEventListener("click", () => { from += PER_PAGE; drawTable(); });
  window.addEventListener("hashchange", show);
  byId("loading").hidden = true;
  drawTokens();
  search();
  show();
  document.body.dataset.ready = "true";
})().catch((error) => {
  document.getElementById("loading").textContent = `This page cannot be shown: ${error}. It needs a browser of 2023 or later.`;
});
