"use strict";
/* The map of one request. Everything it shows comes from ../layers/<request>. */

(() => {
  const requestId = document.body.dataset.request;
  const address = `../layers/${encodeURIComponent(requestId)}`;
  const grant = new URLSearchParams(location.search).get("grant"); // lets a browser in
  const signed = (url) => grant
    ? `${url}${url.includes("?") ? "&" : "?"}grant=${encodeURIComponent(grant)}` : url;
  const POLL_MS = 5000;
  const INPUT = "input_rgb";
  const GOOD = new Set(["COMPLETED"]);
  const BAD = new Set(["FAILED", "COMPLETED_WITH_ERRORS", "STOPPED"]);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const at = (id) => document.getElementById(id);
  const own = getComputedStyle(document.documentElement);
  const colour = (name) => own.getPropertyValue(name).trim();

  let map = null;
  let twin = null; // the second map, which shows the input left of the divider
  let described = null;
  const opacity = {};
  const visible = {};

  function element(tag, properties = {}, ...children) {
    const { className, text, ...rest } = properties;
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    for (const [key, value] of Object.entries(rest)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function swatch(fill, alpha = 1) {
    const made = element("span", { className: alpha < 1 ? "swatch see-through" : "swatch" });
    made.style.backgroundColor = fill + Math.round(255 * alpha).toString(16).padStart(2, "0");
    return made;
  }

  const number = (value, digits) =>
    new Intl.NumberFormat("en", { maximumFractionDigits: digits }).format(value);
  const percent = (share) => `${number(100 * share, share < 0.01 ? 2 : 1)} %`;
  const area = (hectares) =>
    hectares >= 1000 ? `${number(hectares / 100, 1)} km²` : `${number(hectares, hectares >= 100 ? 0 : 2)} ha`;
  const when = (text) => new Date(text).toLocaleString("en-GB", { timeZone: "UTC", hour12: false,
    dateStyle: "medium", timeStyle: "short" }) + " UTC";
  function place(lon, lat) {
    const [ns, ew] = [lat < 0 ? "S" : "N", lon < 0 ? "W" : "E"];
    return `${Math.abs(lat).toFixed(5)}° ${ns}, ${Math.abs(lon).toFixed(5)}° ${ew}`;
  }

  function notice(text) {
    at("notice").hidden = !text;
    at("notice").textContent = text || "";
  }

  /* What the panel says */

  function showRequest(request) {
    at("model").textContent = `${request.model.title} · version ${request.model.version}`;
    const status = at("status");
    status.textContent = request.status.replaceAll("_", " ").toLowerCase();
    status.dataset.kind = GOOD.has(request.status) ? "good" : BAD.has(request.status) ? "bad" : "busy";
    const total = Object.values(request.tasks).reduce((sum, count) => sum + count, 0);
    const done = request.tasks.FINISHED || 0;
    const failed = request.tasks.FAILED || 0;
    at("progress").textContent = total
      ? `${done} of ${total} tasks${failed ? `, ${failed} failed` : ""}` : "";
    const facts = [
      ["Request", request.id],
      ["Model", `${request.model.name}@${request.model.version}`],
      ["Location", request.location],
      ["Created", when(request.created_at)],
      ["Finished", request.finished_at ? when(request.finished_at) : ""],
      ["Pixels", request.pixels_total ? `${number(request.pixels_total / 1e6, 2)} million` : ""],
      ["Error", request.error],
      ["Note", request.description],
    ];
    at("about").replaceChildren(...facts.filter(([, value]) => value).flatMap(
      ([name, value]) => [element("dt", { text: name }), element("dd", { text: value })]));
  }

  function showLayers(layers) {
    const rows = [...layers].reverse().map((layer) => { // topmost first, as in a drawing program
      const toggle = element("input", { type: "checkbox", id: `show-${layer.name}` });
      toggle.checked = visible[layer.name];
      toggle.addEventListener("change", () => {
        visible[layer.name] = toggle.checked;
        const { visibility } = layout(layer);
        for (const { id } of parts(layer)) map.setLayoutProperty(id, "visibility", visibility);
      });
      const row = element("li", {}, element("label", { className: "switch" }, toggle,
        element("span", { text: shortTitle(layer) })));
      if (layer.name !== INPUT && layer.kind !== "vector") row.append(opacityRow(layer));
      return row;
    });
    at("layers").replaceChildren(...rows);
    at("swipe").hidden = !(layers.some((layer) => layer.name === INPUT) && layers.length > 1);
  }

  /* On a map server a title names its request too; here the heading does. */
  function shortTitle(layer) {
    const [title, subject] = layer.title.split(" · ");
    const { name, id } = described.request;
    return subject && (subject === name || id.startsWith(subject)) ? title : layer.title;
  }

  function opacityRow(layer) {
    const range = element("input", { type: "range", min: 0, max: 100, step: 1, id: `opacity-${layer.name}` });
    range.value = Math.round(100 * opacity[layer.name]);
    const output = element("output", { text: `${range.value} %` });
    range.addEventListener("input", () => {
      opacity[layer.name] = range.value / 100;
      output.textContent = `${range.value} %`;
      map.setPaintProperty(layer.name, "raster-opacity", opacity[layer.name]);
    });
    return element("label", { className: "slider" }, element("span", { text: "Opacity" }), range, output);
  }

  function showLegend(layers) {
    const shown = layers.filter((layer) => layer.style.kind !== "rgb").map((layer) =>
      layer.style.kind === "vector" ? vectorLegend(layer)
        : layer.style.kind === "classes" ? classLegend(layer.style) : rampLegend(layer.style));
    at("legend").replaceChildren(...shown);
    at("legend-section").hidden = shown.length === 0;
  }

  function vectorLegend(layer) {
    const { fill, fill_opacity: alpha, stroke } = layer.style.polygon;
    const mark = swatch(fill, alpha);
    mark.style.border = `2px solid ${stroke}`;
    return element("ul", { className: "classes" }, element("li", {}, mark,
      element("span", { className: "name", text: shortTitle(layer) })));
  }

  function classLegend(style) {
    const list = element("ul", { className: "classes" });
    let hectares = 0;
    for (const item of style.classes) {
      const counted = item.share !== undefined;
      const share = element("span", { className: "share", text: counted ? percent(item.share) : "" });
      const row = element("li", {}, swatch(item.colour, item.opacity),
        element("span", { className: "name", text: item.name }), share);
      if (counted) {
        const filled = element("span");
        filled.style.width = `${100 * item.share}%`;
        filled.style.backgroundColor = item.colour;
        row.append(element("span", { className: "bar" }, filled));
        row.title = `${number(item.pixels, 0)} pixels${item.area_ha ? `, ${area(item.area_ha)}` : ""}`;
        if (item.area_ha) share.textContent += ` · ${area(item.area_ha)}`;
        hectares += item.area_ha || 0;
      }
      list.append(row);
    }
    const whole = element("div", {}, list);
    if (hectares) {
      whole.append(element("p", { className: "area", text: `Classified area: ${area(hectares)}` }));
    }
    return whole;
  }

  function rampLegend(style) {
    const { stops } = style;
    const [first, last] = [stops[0], stops[stops.length - 1]];
    const [low, high] = [first.value, last.value];
    const bar = element("div", { className: "ramp" });
    const marks = stops.map((stop) =>
      `${stop.colour} ${(100 * (stop.value - low)) / ((high - low) || 1)}%`);
    bar.style.background = stops.length > 1 ? `linear-gradient(to right, ${marks.join(", ")})` : first.colour;
    const label = (stop) => stop.label || number(stop.value, 3);
    const unit = style.unit ? ` ${style.unit}` : "";
    return element("div", {}, bar, element("div", { className: "ramp-labels" },
      element("span", { text: label(first) }), element("span", { text: label(last) + unit })));
  }

  /* The map */

  function emptyStyle() {
    return { version: 8, sources: {}, layers: [
      { id: "background", type: "background", paint: { "background-color": colour("--canvas") } },
    ] };
  }

  function graticule(bounds) {
    const span = Math.max(bounds.getEast() - bounds.getWest(), bounds.getNorth() - bounds.getSouth());
    const steps = [45, 30, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001];
    const step = steps.find((size) => span / size >= 5) || 0.001;
    const lines = [];
    const west = Math.floor(bounds.getWest() / step) - 1;
    const east = Math.ceil(bounds.getEast() / step) + 1;
    const south = Math.max(Math.floor(bounds.getSouth() / step) - 1, Math.ceil(-85 / step));
    const north = Math.min(Math.ceil(bounds.getNorth() / step) + 1, Math.floor(85 / step));
    for (let x = west; x <= east; x += 1) lines.push([[x * step, south * step], [x * step, north * step]]);
    for (let y = south; y <= north; y += 1) lines.push([[west * step, y * step], [east * step, y * step]]);
    return { type: "Feature", properties: {},
      geometry: { type: "MultiLineString", coordinates: lines } };
  }

  function addGround() {
    const line = { "line-color": colour("--soft"), "line-width": 0.6, "line-opacity": 0.28 };
    map.addSource("graticule", { type: "geojson", data: graticule(map.getBounds()) });
    map.addLayer({ id: "graticule", type: "line", source: "graticule", paint: line });
    map.on("moveend", () => map.getSource("graticule").setData(graticule(map.getBounds())));
    map.addSource("footprints", { type: "geojson", data: described.footprints });
    map.addLayer({ id: "footprints", type: "line", source: "footprints",
      paint: { "line-color": colour("--accent"), "line-width": 1.2, "line-opacity": 0.75 } });
  }

  function source(layer) {
    if (layer.kind === "vector") return { type: "geojson", data: layer.features };
    const [west, south, east, north] = layer.bounds;
    const made = { type: "raster", tiles: layer.tiles, tileSize: 256,
      minzoom: layer.minzoom, maxzoom: layer.maxzoom };
    return west < east ? { ...made, bounds: [west, south, east, north] } : made;
  }

  /* The map's layers that draw one of ours: of a vector layer one for each kind of geometry. */
  function parts(layer) {
    if (layer.kind !== "vector") return [rasterLayer(layer)];
    const { point, line, polygon } = layer.style;
    const drawn = (part, type, geometry, paint) => ({ id: `${layer.name}:${part}`, type, paint,
      source: layer.name, filter: ["==", ["geometry-type"], geometry], layout: layout(layer) });
    const stroked = (mark) => ({ "line-color": mark.stroke, "line-width": mark.stroke_width,
      "line-opacity": mark.stroke_opacity });
    return [
      drawn("fill", "fill", "Polygon", { "fill-color": polygon.fill, "fill-opacity": polygon.fill_opacity }),
      drawn("outline", "line", "Polygon", stroked(polygon)),
      drawn("line", "line", "LineString", stroked(line)),
      drawn("point", "circle", "Point", { "circle-color": point.fill, "circle-opacity": point.fill_opacity,
        "circle-radius": point.size / 2, "circle-stroke-color": point.stroke,
        "circle-stroke-width": point.stroke_width, "circle-stroke-opacity": point.stroke_opacity }),
    ];
  }

  const layout = (layer) => ({ visibility: visible[layer.name] ? "visible" : "none" });

  function rasterLayer(layer) {
    return { id: layer.name, type: "raster", source: layer.name, layout: layout(layer),
      paint: { "raster-opacity": opacity[layer.name], "raster-fade-duration": 0, "raster-resampling": "nearest" } };
  }

  function putLayers(layers) {
    for (const layer of layers) {
      opacity[layer.name] ??= 1;
      visible[layer.name] ??= true;
      const present = map.getSource(layer.name);
      if (!present) {
        map.addSource(layer.name, source(layer));
        for (const part of parts(layer)) map.addLayer(part, "footprints");
      } else if (layer.kind === "vector") {
        if (present.serialize().data !== layer.features) present.setData(layer.features);
      } else if (present.tiles[0] !== layer.tiles[0]) {
        present.setTiles(layer.tiles);
      }
    }
    map.getSource("footprints").setData(described.footprints);
  }

  function home(animate) {
    if (!described.bounds) return;
    let [west, south, east, north] = described.bounds;
    if (west > east) east += 360;
    const wide = innerWidth > 720;
    const panel = at("panel").getBoundingClientRect();
    const padding = wide ? { left: panel.right + 36, top: 36, right: 36, bottom: 36 }
      : { left: 24, top: 24, right: 24, bottom: Math.min(panel.height, innerHeight * 0.55) + 16 };
    document.body.dataset.bounds = "moving";
    map.once("moveend", () => { document.body.dataset.bounds = "shown"; });
    map.fitBounds([[west, south], [east, north]], { padding, animate: animate && !still });
  }

  /* Comparing: the input in a second map, cut off at the divider */

  function compare(on) {
    at("compare").hidden = at("divider").hidden = at("position-row").hidden = !on;
    if (on && !twin) {
      twin = new maplibregl.Map({ container: "compare", style: emptyStyle(), interactive: false,
        attributionControl: false, center: map.getCenter(), zoom: map.getZoom() });
      twin.on("load", () => {
        const input = described.layers.find((layer) => layer.name === INPUT);
        twin.addSource(INPUT, source(input));
        twin.addLayer({ ...rasterLayer(input), layout: { visibility: "visible" } });
        follow();
      });
      twin.on("idle", () => { at("compare").dataset.state = "ready"; });
      map.on("move", follow);
    }
    if (on) { twin.resize(); follow(); moveDivider(); }
  }

  function follow() {
    if (!twin || at("compare").hidden) return;
    twin.jumpTo({ center: map.getCenter(), zoom: map.getZoom(), bearing: map.getBearing(), pitch: map.getPitch() });
  }

  function moveDivider() {
    const wide = innerWidth > 720;
    const left = wide ? at("panel").getBoundingClientRect().right : 0;
    const x = left + ((innerWidth - left) * at("position").value) / 100;
    at("divider").style.left = `${x}px`;
    at("compare").style.clipPath = `inset(0 ${Math.max(innerWidth - x, 0)}px 0 0)`;
  }

  /* Values */

  async function readValue(lngLat, popup) {
    const { lng: lon, lat } = lngLat.wrap();
    const layer = described.layers.findLast((item) => item.point && item.style.kind !== "rgb");
    if (!layer) return;
    const answer = await fetch(
      signed(`${address}/${encodeURIComponent(layer.name)}/point?lon=${lon}&lat=${lat}`));
    const found = answer.ok ? await answer.json() : { value: null };
    at("value").replaceChildren(...valueText(found, lon, lat));
    if (popup && found.value !== null) {
      const content = element("div", {}, ...valueText(found, lon, lat));
      new maplibregl.Popup({ maxWidth: "260px", focusAfterOpen: false })
        .setLngLat(lngLat).setDOMContent(content).addTo(map);
    }
  }

  function valueText(found, lon, lat) {
    const where = element("span", { className: "place", text: place(lon, lat) });
    if (found.value === null) return [element("span", { text: "No data here" }), where];
    const text = found.label ?? `${number(found.value[0], 4)} ${found.unit || ""}`.trim();
    const value = element("span", { className: "found" });
    if (found.colour) value.append(swatch(found.colour));
    value.append(text);
    return [value, where];
  }

  /* Putting it together */

  async function load() {
    const answer = await fetch(signed(address), { headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error((await answer.json()).detail || answer.statusText);
    return answer.json();
  }

  function show() {
    showRequest(described.request);
    putLayers(described.layers);
    showLayers(described.layers);
    showLegend(described.layers);
    if (described.layers.length) notice("");
    else notice(described.request.over ? "This request left nothing to show." : "The first results appear here.");
  }

  async function poll() {
    try {
      const before = described.layers.length;
      described = await load();
      show();
      if (!before && described.layers.length) home(false);
    } catch (error) {
      notice(`The server does not answer (${error.message}).`);
    }
    if (!described.request.over) setTimeout(poll, POLL_MS);
  }

  function start() {
    map = new maplibregl.Map({ container: "map", style: emptyStyle(), attributionControl: false,
      center: [0, 20], zoom: 1, maxZoom: 22, dragRotate: false, pitchWithRotate: false });
    map.touchZoomRotate.disableRotation();
    map.addControl(new maplibregl.NavigationControl({ showCompass: false }), "top-right");
    map.addControl(new maplibregl.FullscreenControl(), "top-right");
    map.addControl(new maplibregl.ScaleControl({ maxWidth: 120 }), "bottom-right");
    at("map").maplibre = map; // for the browser's console
    home(false);
    map.on("load", () => {
      addGround();
      show();
      if (!described.request.over) setTimeout(poll, POLL_MS);
    });
    map.on("idle", () => { document.body.dataset.state = "ready"; });
    map.on("movestart", () => { document.body.dataset.state = "moving"; });
    map.on("mousemove", (event) => {
      at("readout").textContent = place(event.lngLat.wrap().lng, event.lngLat.lat);
    });
    map.on("mouseout", () => { at("readout").textContent = ""; });
    map.on("click", (event) => readValue(event.lngLat, true));
    at("centre").addEventListener("click", () => readValue(map.getCenter(), true));
    at("home").addEventListener("click", () => home(true));
    at("compare-toggle").addEventListener("change", (event) => compare(event.target.checked));
    at("position").addEventListener("input", moveDivider);
    addEventListener("resize", moveDivider);
  }

  load().then((answer) => {
    described = answer;
    showRequest(described.request);
    showLegend(described.layers);
    start();
  }).catch((error) => {
    document.body.dataset.state = "failed";
    const webgl = /webgl/i.test(error.message);
    notice(webgl ? "This browser can't draw maps (WebGL is off)." : error.message);
  });
})();
