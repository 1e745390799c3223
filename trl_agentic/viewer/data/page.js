"use strict";
// All text of a rollout becomes a text node of the page. It is never parsed as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const text = (index) => (index === null ? "" : data.strings[index]);
const named = (names, values) => Object.fromEntries(names.map((name, i) => [name, values[i]]));
const rollouts = data.rollouts.map((values, index) => {
  const rollout = named(data.rollout_fields, values);
  rollout.index = index;
  rollout.turns = rollout.turns.map((turn) => named(data.turn_fields, turn));
  return rollout;
});
const groups = new Map();
for (const rollout of rollouts) {
  if (!groups.has(rollout.group)) groups.set(rollout.group, []);
  groups.get(rollout.group).push(rollout);
}

const METRICS = {
  advantage: "advantage", return: "return", value: "V(s)", information_gain: "information gain", ratio: "ratio",
  reward: "reward",
};
const FILTERS = {
  source: ["file", (r) => text(r.source)],
  step: ["step", (r) => r.step],
  task_type: ["task type", (r) => text(r.task_type)],
  success: ["success", (r) => ({ true: "yes", false: "no", null: "not reported" })[r.success]],
  stop_reason: ["stop reason", (r) => text(r.stop_reason)],
  group: ["group", (r) => data.groups[r.group]],
};
const SORTS = {
  "": ["in order", () => 0],
  "-return": ["highest return", (a, b) => b.return - a.return],
  return: ["lowest return", (a, b) => a.return - b.return],
  "-turns": ["most turns", (a, b) => b.turns.length - a.turns.length],
  turns: ["fewest turns", (a, b) => a.turns.length - b.turns.length],
  "-spread": ["most credit", (a, b) => spread(b) - spread(a)],
};
const KEYS = [
  ["j k", "next, previous rollout"], ["] [", "next, previous rollout of the group"], ["→ ←", "next, previous turn"],
  ["g", "the whole group at its shared states, or one rollout"], ["/", "search"], ["t", "light or dark"],
  ["?", "this list"],
];

// The selection that is shown, which is also the fragment of the address.
const state = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
let shown = [];

function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "style") Object.assign(node.style, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function number(value) {
  return value === null ? "–" : String(Number(value.toPrecision(4)));
}

function spread(rollout) {
  return rollout.turns.reduce((sum, turn) => sum + Math.abs(turn.advantage ?? 0), 0);
}

// Blue above the centre and orange below it; the group's largest distance has full strength.
function colour(turn, scale) {
  const value = turn[state.colour];
  if (value === null || value === undefined) return "transparent";
  const offset = value - centre();
  const strength = Math.round(100 * Math.min(1, Math.abs(offset) / scale));
  return `color-mix(in srgb, ${offset < 0 ? "#e8710a" : "#1a73e8"} ${strength}%, transparent)`;
}

function centre() {
  return state.colour === "ratio" ? 1 : 0;
}

const scales = new Map();
function scaleOf(group) {
  const key = `${state.colour} ${group}`;
  if (!scales.has(key)) {
    let most = 1e-9;
    for (const rollout of groups.get(group))
      for (const turn of rollout.turns) most = Math.max(most, Math.abs((turn[state.colour] ?? centre()) - centre()));
    scales.set(key, most);
  }
  return scales.get(key);
}

function gradient(rollout) {
  const scale = scaleOf(rollout.group);
  const width = 100 / Math.max(rollout.turns.length, 1);
  const stops = rollout.turns.map((turn, k) => `${colour(turn, scale)} ${k * width}% ${(k + 1) * width}%`);
  return stops.length ? `linear-gradient(to right, ${stops.join(", ")})` : "none";
}

function outcome(rollout) {
  if (rollout.success === null) return element("span", { className: "faint", title: "not reported" }, "·");
  return element("span", { className: rollout.success ? "good" : "bad" }, rollout.success ? "✓" : "✗");
}

function matches(rollout, found) {
  for (const [name, [, value]] of Object.entries(FILTERS))
    if (state[name] !== undefined && String(value(rollout)) !== state[name]) return false;
  if (found === null || found.has(rollout.task)) return true;
  return rollout.turns.some((turn) => found.has(turn.observation) || found.has(turn.action));
}

function drawList() {
  let found = null;
  if (state.search) {
    const wanted = state.search.toLowerCase();
    found = new Set();
    data.strings.forEach((string, i) => string.toLowerCase().includes(wanted) && found.add(i));
  }
  shown = rollouts.filter((rollout) => matches(rollout, found));
  shown.sort((SORTS[state.sort ?? ""] ?? SORTS[""])[1]);
  const rows = shown.map((rollout) => {
    const row = element("div", { className: "row", title: `${text(rollout.source)} ${data.groups[rollout.group]}` },
      element("span", { className: "faint" }, `#${rollout.index}`), outcome(rollout),
      element("span", {}, text(rollout.task_type) || "–"),
      element("span", { className: "bar", style: { background: gradient(rollout) } }),
      element("span", {}, number(rollout.return)));
    row.onclick = () => choose(rollout, 0);
    row.dataset.rollout = rollout.index;
    return row;
  });
  document.getElementById("list").replaceChildren(...rows);
  const reported = shown.filter((rollout) => rollout.success !== null);
  const won = reported.filter((rollout) => rollout.success).length;
  const mean = shown.reduce((sum, rollout) => sum + rollout.return, 0) / shown.length;
  document.getElementById("summary").textContent = `${shown.length} of ${rollouts.length} rollouts` +
    (reported.length ? `, success ${won}/${reported.length}` : "") + (shown.length ? `, mean return ${number(mean)}` : "");
  markChosen();
}

function chosen() {
  return rollouts[Number(state.rollout)] ?? shown[0] ?? null;
}

function markChosen() {
  const current = chosen();
  document.querySelectorAll(".row.chosen").forEach((row) => row.classList.remove("chosen"));
  const row = current && document.querySelector(`.row[data-rollout="${current.index}"]`);
  if (row) {
    row.classList.add("chosen");
    row.scrollIntoView({ block: "nearest" });
  }
}

function drawMain() {
  const main = document.getElementById("main");
  const rollout = chosen();
  document.getElementById("view").textContent = state.view === "group" ? "one rollout" : "group";
  if (!rollout) {
    main.replaceChildren(element("p", { className: "faint" }, "No rollout fits the filters."));
  } else if (state.view === "group") {
    main.replaceChildren(...groupView(rollout));
  } else {
    main.replaceChildren(...rolloutView(rollout));
  }
  main.querySelector(".turn.chosen, .visit.chosen")?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function labelled(name, value) {
  return element("span", { className: "chip" }, element("span", { className: "faint" }, `${name} `), value);
}

function rolloutView(rollout) {
  const scale = scaleOf(rollout.group);
  const current = Number(state.turn ?? 0);
  const strip = rollout.turns.map((turn, k) => {
    const cell = element("button", { type: "button", title: `turn ${k}: ${METRICS[state.colour]} ` +
      number(turn[state.colour] ?? null), style: { background: colour(turn, scale) } }, String(k));
    cell.classList.toggle("clipped", turn.clipped > 0);
    cell.classList.toggle("chosen", k === current);
    cell.onclick = () => choose(rollout, k);
    return cell;
  });
  const visits = visitsOf(rollout.group);
  const task = JSON.parse(text(rollout.task));
  return [
    element("div", { className: "labels" }, labelled("rollout", `#${rollout.index}`), outcome(rollout),
      labelled("step", number(rollout.step)), labelled("group", data.groups[rollout.group]),
      labelled("task type", text(rollout.task_type) || "–"), labelled("return", number(rollout.return)),
      labelled("turns", String(rollout.turns.length)), labelled("stopped", text(rollout.stop_reason)),
      labelled("file", text(rollout.source))),
    element("details", {}, element("summary", {}, "task"), element("pre", {}, JSON.stringify(task, null, 2))),
    element("div", { className: "strip" }, ...strip),
    ...rollout.turns.map((turn, k) => turnCard(rollout, turn, k, k === current, scale, visits)),
    rollout.final_observation === null || text(rollout.final_observation) === "" ? null :
      element("section", { className: "turn" }, element("header", {}, "at the end"),
        element("pre", {}, text(rollout.final_observation))),
    rollout.error === null ? null : element("pre", { className: "error" }, text(rollout.error)),
  ].filter((node) => node !== null);
}

function turnCard(rollout, turn, k, isChosen, scale, visits) {
  const range = turn.clip_low === null ? null : `[${number(turn.clip_low)}, ${number(turn.clip_high)}]`;
  const shared = visits.get(turn.anchor_state).length;
  const card = element("section", { className: "turn", style: { borderLeftColor: colour(turn, scale) } },
    element("header", {}, element("b", {}, `turn ${k}`),
      ...Object.entries(METRICS).filter(([name]) => turn[name] !== null)
        .map(([name, label]) => labelled(label, element("b", {}, number(turn[name])))),
      range && labelled("clip range", range),
      turn.clipped > 0 ? element("span", { className: "bad" }, turn.clipped < 1 ?
        `clipped in ${number(100 * turn.clipped)}% of its tokens` : "clipped") : null,
      turn.is_action_valid === false ? element("span", { className: "bad" }, "invalid action") : null,
      turn.cut ? element("span", { className: "bad" }, "cut at its token budget") : null,
      turn.action_tokens === null ? null : labelled("tokens", String(turn.action_tokens)),
      labelled("visits of this state in the group", String(shared))),
    element("pre", {}, text(turn.observation)),
    element("pre", { className: "action" }, text(turn.action)));
  card.classList.toggle("chosen", isChosen);
  card.onclick = () => String(window.getSelection()) || isChosen || choose(rollout, k);
  return card;
}

// State -> its visits [rollout, turn, number of the turn], ordered by turn.
function visitsOf(group) {
  const visits = new Map();
  const turns = groups.get(group).flatMap((rollout) => rollout.turns.map((turn, k) => [rollout, turn, k]));
  turns.sort((a, b) => a[2] - b[2]);
  for (const visit of turns) {
    const key = visit[1].anchor_state;
    if (!visits.has(key)) visits.set(key, []);
    visits.get(key).push(visit);
  }
  return visits;
}

function groupView(rollout) {
  const members = groups.get(rollout.group);
  const scale = scaleOf(rollout.group);
  const current = Number(state.turn ?? 0);
  const states = [...visitsOf(rollout.group)];
  const isShared = ([, visits]) => new Set(visits.map((visit) => visit[0])).size > 1;
  const own = rollout.turns[current]?.anchor_state;
  const rows = (state.all ? states : states.filter((entry) => isShared(entry) || entry[0] === own))
    .map(([anchor, visits]) => {
      const value = visits[0][1].value;
      const cells = members.map((member) => element("td", {}, ...visits.filter((visit) => visit[0] === member)
        .map(([, turn, k]) => visitButton(member, turn, k, scale, member === rollout && k === current))));
      return element("tr", {}, element("th", {}, element("span", { className: "faint" },
        `${visits.length} visits` + (value === null ? "" : `, V(s) ${number(value)}`)),
        element("pre", {}, text(anchor))), ...cells);
    });
  const heads = members.map((member) => {
    const head = element("th", {}, outcome(member), ` #${member.index} `,
      element("span", { className: "faint" }, `return ${number(member.return)}, ${text(member.stop_reason)}`));
    head.classList.toggle("chosen", member === rollout);
    head.onclick = () => choose(member, 0);
    return head;
  });
  const all = element("input", { type: "checkbox", checked: Boolean(state.all) });
  all.onchange = () => show({ all: all.checked ? "1" : undefined });
  const hidden = states.length - rows.length;
  return [
    element("div", { className: "labels" }, labelled("group", data.groups[rollout.group]),
      labelled("rollouts", String(members.length)), labelled("states", String(states.length)),
      element("label", {}, all, ` also states of a single rollout${hidden ? ` (${hidden} hidden)` : ""}`)),
    element("table", { className: "group" },
      element("thead", {}, element("tr", {}, element("th", {}, "state, in the order it was first seen"), ...heads)),
      element("tbody", {}, ...rows)),
  ];
}

function visitButton(rollout, turn, k, scale, isChosen) {
  const button = element("button", { type: "button", className: "visit",
    style: { borderLeftColor: colour(turn, scale), background: colour(turn, 4 * scale) } },
    element("span", { className: "faint" }, `turn ${k}`, turn.advantage === null ? "" : `, A ${number(turn.advantage)}`,
      turn.return === null ? "" : `, R ${number(turn.return)}`),
    element("pre", {}, text(turn.action)));
  button.classList.toggle("clipped", turn.clipped > 0);
  button.classList.toggle("chosen", isChosen);
  button.onclick = () => choose(rollout, k);
  button.ondblclick = () => show({ view: undefined });
  return button;
}

function show(changes) {
  for (const [name, value] of Object.entries(changes)) {
    if (value === undefined || value === "") delete state[name];
    else state[name] = String(value);
  }
  history.replaceState(null, "", `#${new URLSearchParams(state)}`);
  const selects = Object.keys(changes).some((name) => name in FILTERS || ["search", "sort", "colour"].includes(name));
  if (selects) drawList();
  else markChosen();
  drawMain();
}

function choose(rollout, turn) {
  show({ rollout: rollout.index, turn });
}

function move(list, by) {
  const place = list.indexOf(chosen());
  const next = list[Math.min(list.length - 1, Math.max(0, place + by))];
  if (next) choose(next, 0);
}

function moveTurn(by) {
  const rollout = chosen();
  if (!rollout) return;
  const turn = Math.min(rollout.turns.length - 1, Math.max(0, Number(state.turn ?? 0) + by));
  choose(rollout, turn);
}

function select(name, options) {
  const node = element("select", { name }, ...options.map(([value, label]) => element("option", { value }, label)));
  node.value = state[name] ?? "";
  node.onchange = () => show(name in FILTERS ? { [name]: node.value, rollout: undefined, turn: undefined } :
    { [name]: node.value });
  return node;
}

function drawFilters() {
  const nodes = Object.entries(FILTERS).map(([name, [label, value]]) => {
    const values = [...new Set(rollouts.map((rollout) => String(value(rollout))))];
    if (values.length < 2) return null;
    return element("label", {}, label, select(name, [["", "all"], ...values.map((v) => [v, v])]));
  });
  const search = element("input", { type: "search", id: "search", value: state.search ?? "" });
  search.oninput = () => {
    clearTimeout(search.waiting);
    search.waiting = setTimeout(() => show({ search: search.value }), 150);
  };
  const sorts = Object.entries(SORTS).map(([value, [label]]) => [value, label]);
  document.getElementById("filters").replaceChildren(...nodes.filter((node) => node !== null),
    element("label", {}, "sort", select("sort", sorts)), element("label", { className: "wide" }, "search", search));
  document.getElementById("filters").onsubmit = (event) => event.preventDefault();
}

function drawColours() {
  const known = Object.keys(METRICS).filter((name) =>
    rollouts.some((rollout) => rollout.turns.some((turn) => turn[name] !== null && turn[name] !== undefined)));
  if (!known.includes(state.colour)) state.colour = known[0] ?? "reward";
  const node = document.getElementById("colour");
  node.replaceChildren(...known.map((name) => element("option", { value: name }, METRICS[name])));
  node.value = state.colour;
  node.onchange = () => show({ colour: node.value });
}

function toggleGroup() {
  show({ view: state.view === "group" ? undefined : "group" });
}

function toggleTheme() {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  setTheme(dark ? "light" : "dark");
}

function setTheme(theme) {
  document.documentElement.dataset.theme = state.theme = theme;
  history.replaceState(null, "", `#${new URLSearchParams(state)}`);
}

function showKeys() {
  const help = document.getElementById("help");
  const rows = KEYS.map(([keys, action]) => element("tr", {},
    element("td", {}, ...keys.split(" ").map((key) => element("kbd", {}, key))), element("td", {}, action)));
  help.replaceChildren(element("table", {}, ...rows));
  help.onclick = () => help.close();
  if (help.open) help.close();
  else help.showModal();
}

const ACTIONS = {
  j: () => move(shown, 1), k: () => move(shown, -1),
  "]": () => move(groups.get(chosen()?.group) ?? [], 1), "[": () => move(groups.get(chosen()?.group) ?? [], -1),
  ArrowRight: () => moveTurn(1), ArrowLeft: () => moveTurn(-1), g: toggleGroup, t: toggleTheme, "?": showKeys,
  "/": () => document.getElementById("search").focus(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (["INPUT", "SELECT"].includes(event.target.tagName)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const action = ACTIONS[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});
document.getElementById("view").onclick = toggleGroup;
document.getElementById("theme").onclick = toggleTheme;
document.getElementById("keys").onclick = showKeys;
if (["light", "dark"].includes(state.theme)) setTheme(state.theme);
drawColours();
drawFilters();
drawList();
drawMain();
