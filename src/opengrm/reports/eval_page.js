"use strict";
// Tables that are sorted by a click on a column's head: numbers first, largest on top.
for (const table of document.querySelectorAll("table.sorted")) {
  const body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  const value = (row, i) => parseFloat(row.cells[i].textContent.replace(/,/g, ""));
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].sort((a, b) => {
        const x = value(a, i), y = value(b, i);
        if (Number.isNaN(x) && Number.isNaN(y))
          return a.cells[i].textContent.localeCompare(b.cells[i].textContent) * (up ? -1 : 1);
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
        return up ? x - y : y - x;
      });
      body.replaceChildren(...rows);
    });
  });
}
// The browser of items. All data reaches the page as text (textContent), never as HTML.
(() => {
  const source = document.getElementById("items-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const get = (id) => document.getElementById(id);
  const list = get("list"), panel = get("item"), search = get("search");
  const several = data.runs.length > 1;
  const MARKS = {right: "✓", wrong: "✗", tied: "=", missing: "–"};
  const NAMES = {right: "right", wrong: "wrong", tied: "tied", missing: "no verdict"};

  const make = (tag, cls, ...children) => {
    const element = document.createElement(tag);
    if (cls) element.className = cls;
    for (const child of children) if (child !== null && child !== undefined) element.append(child);
    return element;
  };
  const round = (x) => x === null || x === undefined ? "–" : String(Math.round(x * 1000) / 1000);
  const known = (x) => x !== null && x !== undefined;

  const words = (item) => item.words ??= [
    item.id, item.subset, item.reference || "", ...(item.prompt || []).map((m) => m[1]), ...(item.responses || []),
    ...item.runs.flatMap((run) => run ? run.votes.flatMap((v) => [v.error || "", ...(v.said || []).map((s) => s[1])]) : []),
  ].join("\n").toLowerCase();

  // --- what is listed ---

  let shown = [], current = null;
  const buttons = new Map();
  const chosenRuns = (item) => {
    const run = several ? get("run").value : "0";
    return (run === "any" ? item.runs : [item.runs[Number(run)]]).filter(Boolean);
  };
  const fits = (item, outcome) => {
    const runs = chosenRuns(item);
    if (!runs.length) return false;
    if (outcome === "all") return true;
    if (outcome === "differ") return new Set(item.runs.filter(Boolean).map((r) => r.outcome)).size > 1;
    return runs.some((r) => outcome === "trouble" ? r.outcome !== "right" : r.outcome === outcome);
  };
  const subsetOf = (item) => JSON.stringify([item.benchmark, item.subset]);

  for (const [place, item] of data.items.entries()) {
    item.place = place;
    const marks = make("span", "marks");
    for (const run of item.runs) {
      const outcome = run ? run.outcome : "missing";
      const mark = make("span", "mark " + outcome, run ? MARKS[outcome] : "·");
      mark.title = run ? NAMES[outcome] : "not in this run";
      marks.append(mark);
    }
    const query = item.prompt && item.prompt.length ? item.prompt[item.prompt.length - 1][1] : "";
    const title = make("span", "title", query.slice(0, 160).replace(/\s+/g, " ") || item.id);
    title.dir = "auto";
    const under = make("small", "", [item.subset, item.id].filter(Boolean).join(" · ").slice(0, 120));
    const button = make("button", "entry", marks, make("span", "what", title, under));
    button.type = "button";
    button.addEventListener("click", () => open(item, true));
    buttons.set(item, button);
  }

  const subsets = new Map();
  for (const item of data.items) if (item.subset) subsets.set(subsetOf(item), item);
  const fillSubsets = () => {
    const benchmark = get("benchmark").value, before = get("subset").value;
    const options = [...subsets.entries()].filter(([, i]) => benchmark === "all" || i.benchmark === Number(benchmark));
    options.sort(([, a], [, b]) => a.benchmark - b.benchmark || a.subset.localeCompare(b.subset));
    get("subset").replaceChildren(new Option("all subsets", "all"), ...options.map(([key, item]) => new Option(
      (benchmark === "all" && data.benchmarks.length > 1 ? data.benchmarks[item.benchmark] + ": " : "") +
      item.subset.slice(0, 80), key)));
    if (options.some(([key]) => key === before)) get("subset").value = before;
  };

  const filter = () => {
    const text = search.value.trim().toLowerCase(), outcome = get("outcome").value;
    const benchmark = get("benchmark").value, subset = get("subset").value;
    shown = data.items.filter((item) =>
      (benchmark === "all" || item.benchmark === Number(benchmark)) && (subset === "all" || subsetOf(item) === subset) &&
      fits(item, outcome) && (!text || words(item).includes(text)));
    list.replaceChildren(...shown.map((item) => buttons.get(item)));
    get("count").textContent = `${shown.length.toLocaleString("en")} of ${data.items.length.toLocaleString("en")}`;
    if (!shown.includes(current)) shown.length ? open(shown[0], false) : close();
  };

  // --- one item ---

  const block = (text, cls) => {
    const element = make("div", "said " + (cls || ""), text);
    element.dir = "auto";
    return element;
  };
  const heading = (text, level) => make(level || "h4", "", text);

  const responses = (item) => {
    const scored = item.runs.map((run, place) => [run, data.runs[place]]).filter(([run]) => run && run.scores);
    const top = (run) => Math.max(...run.scores.filter(known));
    const boxes = (item.responses || []).map((text, i) => {
      const head = make("h5", "", `Response ${i + 1}`);
      if (item.best === i) head.append(" ", make("span", "tag best", "labelled best"));
      const first = ([run]) => run.scores.length > 1 && run.scores[i] === top(run);
      if (scored.some(first)) {
        const by = several ? ": " + scored.filter(first).map(([, label]) => label).join(", ") : "";
        head.append(" ", make("span", "tag", "top score" + by));
      }
      const notes = [];
      for (const [run, label] of scored)
        if (known(run.scores[i])) notes.push(`score ${round(run.scores[i])}` + (several ? ` (${label})` : ""));
      if (item.rewards && known(item.rewards[i])) notes.push(`label ${round(item.rewards[i])}`);
      return make("div", "response", head, make("small", "", notes.join(" · ")), block(text || "(empty)"));
    });
    return make("div", "responses", ...boxes);
  };

  const votesTable = (run) => {
    const n = Math.max(0, ...run.votes.map((v) => (v.scores || v.order || []).length));
    const head = make("tr", "", ...["vote", "order shown", ...Array.from({length: n}, (_, i) => `score ${i + 1}`), "tokens"]
      .map((name) => make("th", "", name)));
    const lines = run.votes.map((vote) => {
      const order = vote.order ? vote.order.map((i) => i + 1).join(" ") : "–";
      const scores = vote.scores || [], top = Math.max(...scores);
      const cells = Array.from({length: n}, (_, i) =>
        make("td", scores.length > 1 && scores[i] === top ? "top" : "", scores.length ? round(scores[i]) : "–"));
      const line = make("tr", "", make("td", "", String(vote.sample + 1)), make("td", "", order), ...cells,
        make("td", "", known(vote.tokens) ? String(vote.tokens) : "–"));
      return line;
    });
    const box = make("div", "scroll", make("table", "", make("thead", "", head), make("tbody", "", ...lines)));
    box.tabIndex = 0;
    return box;
  };

  const judged = (run, label) => {
    const box = make("section", "run");
    if (several) box.append(heading(label));
    if (!run) return box.append(make("p", "", "This run did not judge this item.")), box;
    const facts = [`${NAMES[run.outcome]}`];
    if (known(run.credit)) facts.push(`credit ${round(run.credit)}` + (known(run.chance) ? ` (a guess: ${round(run.chance)})` : ""));
    if (run.tied.length > 1) facts.push(`tied: ${run.tied.map((i) => i + 1).join(", ")}`);
    if (known(run.asked)) facts.push(`${run.valid ?? "–"} of ${run.asked} votes valid`);
    if (known(run.completion_tokens)) facts.push(`${run.completion_tokens.toLocaleString("en")} tokens written`);
    box.append(make("p", "", make("span", "mark " + run.outcome, MARKS[run.outcome]), " " + facts.join(" · ")));
    if (!run.votes.length) return box;
    box.append(votesTable(run));
    const sources = new Set(run.votes.map((v) => v.by));
    run.votes.forEach((vote, i) => {
      if (!vote.said && !vote.error) return;
      const summary = make("summary", "", `Vote ${vote.sample + 1}` +
        (vote.scores ? `: ${vote.scores.map(round).join(", ")}` : ""));
      if (vote.error) summary.append(" ", make("span", "tag", vote.error));
      if (sources.size > 1 && vote.by) summary.append(" ", make("small", "", vote.by));
      if (known(vote.meta)) summary.append(" ", make("small", "", `meta ${round(vote.meta)}`));
      const details = make("details", "", summary);
      for (const [kind, text] of vote.said || []) {
        if (kind !== "text") details.append(make("h5", "", kind));
        details.append(block(text, kind));
      }
      details.open = i === 0;
      box.append(details);
    });
    const rest = run.judgments - run.votes.length, silent = run.votes.filter((v) => !v.said && !v.error).length;
    if (rest > 0) box.append(make("p", "", make("small", "", `${rest} more judgments are in the ledger.`)));
    if (silent > 0) box.append(make("p", "", make("small", "", `The texts of ${silent} votes are in the ledger.`)));
    return box;
  };

  const open = (item, focus) => {
    if (current) buttons.get(current).removeAttribute("aria-current");
    current = item;
    buttons.get(item).setAttribute("aria-current", "true");
    const title = make("h3", "", `${item.id}`);
    const place = [data.benchmarks.length > 1 ? data.benchmarks[item.benchmark] : "", item.subset].filter(Boolean).join(" · ");
    panel.replaceChildren(title, make("p", "", make("small", "", place)));
    const skipped = item.messages && item.prompt ? item.messages - item.prompt.length : 0;
    if (skipped > 0) panel.append(make("p", "", make("small", "", `${skipped} earlier messages are left out.`)));
    for (const [role, text] of item.prompt || []) panel.append(make("h5", "", role), block(text));
    if (!item.prompt) panel.append(make("p", "", make("small", "", "The item's texts were not kept with this run.")));
    if (item.reference) panel.append(make("h5", "", "reference"), block(item.reference));
    panel.append(responses(item));
    const more = (item.n || 0) - (item.responses || []).length;
    if (item.responses && more > 0) panel.append(make("p", "", make("small", "", `${more} more responses are left out.`)));
    item.runs.forEach((run, i) => panel.append(judged(run, data.runs[i])));
    panel.scrollTop = 0;
    if (focus) {
      buttons.get(item).scrollIntoView({block: "nearest"});
      if (panel.getBoundingClientRect().top > innerHeight * 0.6 || matchMedia("(max-width: 50rem)").matches)
        panel.scrollIntoView({block: "start"});
      history.replaceState(null, "", `#item-${item.place + 1}`);
    }
  };
  const close = () => {
    current = null;
    panel.replaceChildren(make("p", "", "No item fits."));
  };
  const step = (by) => {
    const next = shown[shown.indexOf(current) + by];
    if (next) open(next, true);
  };

  // --- wiring ---

  let timer = 0;
  search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(filter, 150); });
  for (const id of ["outcome", "subset", "run"]) get(id)?.addEventListener("change", filter);
  get("run")?.addEventListener("change", () => current && open(current, false));
  get("benchmark").addEventListener("change", () => { fillSubsets(); filter(); });
  get("previous").addEventListener("click", () => step(-1));
  get("next").addEventListener("click", () => step(1));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input, select, textarea");
    if (event.key === "Escape" && event.target === search) { search.value = ""; search.blur(); filter(); }
    else if (typing) return;
    else if (event.key === "/") { event.preventDefault(); search.focus(); search.scrollIntoView({block: "nearest"}); }
    else if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
  });
  fillSubsets();
  filter();
  const asked = /^#item-(\d+)$/.exec(location.hash);
  if (asked && data.items[Number(asked[1]) - 1]) open(data.items[Number(asked[1]) - 1], true);
})();
