"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  // Everything that is shown becomes text of an element, never markup.
  const make = (tag, text, ...children) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    element.append(...children);
    return element;
  };

  // -- theme, anchors, printing ---------------------------------------------------------------------------
  const theme = at("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  const open = () => {
    const target = location.hash && at(decodeURIComponent(location.hash.slice(1)));
    const details = target && target.closest("details");
    if (details && !details.open) {
      details.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", open);
  open();
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));

  // -- sorting --------------------------------------------------------------------------------------------
  const sorter = (heads, sort) => {
    heads.forEach((head) => {
      const button = make("button", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const falling = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        sort(head, falling ? -1 : 1);
      });
    });
  };
  const collator = new Intl.Collator(undefined, { numeric: true }); // one for all: making it is what takes time
  const inOrder = (a, b) => (typeof a === "string" ? collator.compare(a, b) : a - b);
  document.querySelectorAll("table.sortable").forEach((table) => {
    const body = table.tBodies[0];
    sorter([...table.tHead.rows[0].cells], (head, sign) => {
      const key = (row) => {
        const text = row.cells[head.cellIndex].textContent;
        const number = parseFloat(text);
        return Number.isNaN(number) ? text : number;
      };
      const keyed = [...body.rows].map((row) => [key(row), row]);
      const mixed = keyed.some(([value]) => typeof value === "string");
      keyed.sort(([a], [b]) => sign * (mixed ? inOrder(String(a), String(b)) : a - b));
      body.append(...keyed.map(([, row]) => row));
    });
  });

  // -- questions ------------------------------------------------------------------------------------------
  const source = at("data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const { reading } = data;
  const state = { judged: data.judged, against: data.against, filter: "all", search: "", page: 0, size: 25, key: "number", sign: 1 };
  const f1 = (row, n) => data.f1[row][n];
  const change = (n) => f1(state.judged, n) - f1(state.against, n);
  const right = (row, n) => data.right[row][n] === "1";
  const lost = (n) => right(state.against, n) && !right(state.judged, n);
  const won = (n) => right(state.judged, n) && !right(state.against, n);
  const filters = {
    all: ["all", () => true],
    wrong: ["wrong", (n) => !right(state.judged, n)],
    lost: ["lost: right there, wrong here", lost],
    won: ["won: wrong there, right here", won],
    flipped: ["lost or won", (n) => lost(n) || won(n)],
    cut: ["cut: the prompt, or the answer", (n) => data.cut[state.judged][n] === "1" || Boolean(reading && reading.cut[n])],
    empty: ["empty answer", (n) => !data.answers[state.judged][n]],
  };
  const keys = {
    number: (n) => n,
    question: (n) => data.questions[n],
    f1judged: (n) => f1(state.judged, n),
    f1against: (n) => f1(state.against, n),
    change,
  };

  let haystacks = null; // made when something is searched for the first time
  const matches = (n) => {
    haystacks ||= data.ids.map((id, i) =>
      [id, data.questions[i], ...data.gold[i], ...data.answers.map((row) => row[i])].join("\n").toLowerCase());
    return haystacks[n].includes(state.search);
  };

  let shown = [];
  const select = () => {
    const kept = filters[state.filter][1];
    shown = data.ids.map((_, n) => n).filter((n) => kept(n) && (!state.search || matches(n)));
    if (state.key !== "number" || state.sign < 0) {
      const key = keys[state.key];
      const keyed = shown.map((n) => [key(n), n]);
      keyed.sort(([a, m], [b, n]) => state.sign * inOrder(a, b) || m - n);
      shown = keyed.map(([, n]) => n);
    }
    state.page = 0;
    draw();
  };

  const body = at("answers").tBodies[0];
  const draw = () => {
    const pages = Math.max(1, Math.ceil(shown.length / state.size));
    state.page = Math.min(state.page, pages - 1);
    const start = state.page * state.size;
    body.replaceChildren(...shown.slice(start, start + state.size).map(line));
    at("count").textContent = `${shown.length} of ${data.ids.length} questions`;
    at("page").textContent = `page ${state.page + 1} of ${pages}`;
    at("previous").disabled = state.page === 0;
    at("next").disabled = state.page === pages - 1;
    at("judged-head").firstChild.textContent = data.rows[state.judged];
    at("against-head").firstChild.textContent = data.rows[state.against];
  };

  const line = (n) => {
    const more = make("button", data.questions[n]);
    more.type = "button";
    more.setAttribute("aria-expanded", "false");
    const cells = [
      n + 1, more, data.gold[n].join(" | "), data.answers[state.against][n], data.answers[state.judged][n],
      f1(state.judged, n).toFixed(1), change(n).toFixed(1),
    ].map((cell) => (cell instanceof Node ? make("td", undefined, cell) : make("td", cell)));
    const row = make("tr", undefined, ...cells);
    let detail = null;
    more.addEventListener("click", () => {
      if (detail) {
        detail.remove();
        detail = null;
      } else {
        const cell = make("td", undefined, ...whole(n));
        cell.colSpan = cells.length;
        detail = make("tr", undefined, cell);
        row.after(detail);
      }
      more.setAttribute("aria-expanded", String(Boolean(detail)));
    });
    return row;
  };

  const whole = (n) => {
    const list = make("dl", undefined, make("dt", "id"), make("dd", data.ids[n]));
    list.append(make("dt", "gold"), make("dd", data.gold[n].join(" | ")));
    data.rows.forEach((row, number) => {
      const cut = data.cut[number][n] === "1" ? ", cut" : "";
      list.append(make("dt", row), make("dd", `${data.answers[number][n] || "–"} (F1 ${f1(number, n).toFixed(1)}${cut})`));
    });
    return [list, ...prompt(n)];
  };
  const prompt = (n) => {
    if (!reading) return [];
    const [same, ...rest] = reading.rest[n];
    const pairs = reading.first[data.passage[n]].slice(0, same).concat(rest).map((number) => reading.pairs[number]);
    if (!pairs.length) return [];
    const misread = pairs.filter(([, read]) => read !== null).length;
    const lost = reading.cut[n] ? `, ${reading.cut[n]} cut off` : "";
    const head = make("p", `${pairs.length} tokens${lost}; ${misread} misread, with what they are read as below them:`);
    const text = make("div");
    text.className = "prompt";
    text.append(...pairs.map(([own, read]) => (read === null ? own : make("ruby", own, make("rt", read)))));
    return [head, text];
  };

  const fill = (menu, names, chosen, changed) => {
    menu.append(...names.map(([value, text]) => {
      const option = make("option", text);
      option.value = value;
      option.selected = value === chosen;
      return option;
    }));
    menu.addEventListener("change", () => {
      changed(menu.value);
      select();
    });
  };
  const rows = data.rows.map((name, number) => [number, name]);
  fill(at("judged"), rows, state.judged, (value) => (state.judged = Number(value)));
  fill(at("against"), rows, state.against, (value) => (state.against = Number(value)));
  fill(at("filter"), Object.entries(filters).map(([name, [text]]) => [name, text]), "all", (value) => (state.filter = value));
  at("search").addEventListener("input", (event) => {
    state.search = event.target.value.trim().toLowerCase();
    select();
  });
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  const turn = (by) => () => {
    state.page += by;
    draw();
  };
  at("previous").addEventListener("click", turn(-1));
  at("next").addEventListener("click", turn(1));
  at("size").addEventListener("change", (event) => {
    state.size = Number(event.target.value);
    draw();
  });
  sorter([...document.querySelectorAll("#answers [data-sort]")], (head, sign) => {
    Object.assign(state, { key: head.dataset.sort, sign });
    select();
  });
  select();
  at("controls").hidden = at("pages").hidden = false;
  document.documentElement.dataset.ready = performance.now().toFixed(0);
})();
