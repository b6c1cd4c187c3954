"use strict"
// Draws the figures when they come into sight, sorts, filters and saves tables, and loads a running search again.
const page = document.documentElement, all = selector => [...document.querySelectorAll(selector)]
let figures = []
const colour = name => getComputedStyle(page).getPropertyValue(name).trim()

// Colours by name become those of the page as it is now: light or dark.
function painted(node) {
  if (typeof node === "string") {
    const name = /^var\((--[\w-]+)\)$/.exec(node)
    return name ? colour(name[1]) : node
  }
  if (Array.isArray(node)) return typeof node[0] === "number" && typeof node.at(-1) !== "string" ? node : node.map(painted)
  if (node && typeof node === "object") return Object.fromEntries(Object.entries(node).map(([k, v]) => [k, painted(v)]))
  return node
}

function draw(place) {
  const { data, layout } = painted(figures[place.dataset.figure])
  // On a phone a finger that drags wants to scroll.
  const dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom"
  Plotly.react(place, data, { ...layout, dragmode }, { displayModeBar: false, responsive: true })
  place.dataset.drawn = "true"
}

async function unpacked(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), c => c.charCodeAt(0))
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text()
}

async function load() {
  figures = JSON.parse(await unpacked("figures"))
  const script = document.createElement("script")
  script.textContent = await unpacked("plotly")
  document.head.append(script)
  const places = all(".plot")
  const watch = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) { watch.unobserve(entry.target); draw(entry.target) }
  }, { rootMargin: "600px" })
  places.forEach(place => watch.observe(place))
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => places.filter(place => place.dataset.drawn).forEach(draw))
  addEventListener("beforeprint", () => {
    all("details").forEach(each => each.open = true)
    places.filter(place => !place.dataset.drawn).forEach(draw)
  })
  page.dataset.ready = "true"
}
load().catch(error => {
  console.error(error)
  for (const place of all(".plot")) place.dataset.failed = "true"
})

// A cell says its value where its text does not: a whole number stands in its text, with its thousands set apart.
const value = cell => cell.dataset.value ?? (cell.className === "n" ? cell.textContent.replaceAll(",", "") : cell.textContent)
const titles = table => [...table.tHead.rows[0].cells].map(head => head.textContent.trim())

all("table").forEach(table => table.tHead.addEventListener("click", event => {
  const head = event.target.closest("th")
  if (!head || !event.target.closest("button")) return
  const column = head.cellIndex, first = head.classList.contains("n") ? "descending" : "ascending"
  const now = head.getAttribute("aria-sort")
  const way = now === "none" ? first : now === "ascending" ? "descending" : "ascending"
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", other === head ? way : "none")
  const sign = way === "ascending" ? 1 : -1
  const compare = (a, b) => {
    const [x, y] = [value(a.cells[column]), value(b.cells[column])]
    if (x === "" || y === "") return (x === "") - (y === "")  // what is empty stays at the end
    return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y)
  }
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare))
}))

// Every word must stand in a row; accuracy>98 asks for a number in the column whose title ends so.
function matches(row, names, words) {
  return words.every(word => {
    const asked = /^(.+?)([<>=])(-?[\d.]+)$/.exec(word)
    const column = asked ? names.findIndex(name => name.toLowerCase().endsWith(asked[1])) : -1
    if (column < 0) return row.textContent.toLowerCase().includes(word)
    const text = value(row.cells[column]), [is, limit] = [Number(text), Number(asked[3])]
    return text !== "" && (asked[2] === ">" ? is > limit : asked[2] === "<" ? is < limit : is === limit)
  })
}

all(".tools").forEach(tools => {
  const table = tools.nextElementSibling.querySelector("table"), rows = [...table.tBodies[0].rows]
  const [input, button, output] = tools.children
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean), names = titles(table)
    for (const row of rows) row.hidden = !matches(row, names, words)
    output.textContent = words.length ? `${rows.filter(row => !row.hidden).length} of ${rows.length}` : ""
  })
  button.addEventListener("click", () => {
    const shown = [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => [...row.cells].map(cell => cell.querySelector("a")?.textContent ?? value(cell)))
    const quoted = text => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
    const text = [titles(table), ...shown].map(line => line.map(quoted).join(",") + "\n").join("")
    const link = document.createElement("a")
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }))
    link.download = `${tools.closest("section").querySelector("h2").textContent}.csv`
    link.click()
  })
})

// A table that is wider than its place says so.
const measure = () => all(".scroll").forEach(box => box.classList.toggle("cut", box.scrollWidth > box.clientWidth + 1))
addEventListener("resize", measure)
measure()

// While a search runs the page is written again and again; what the reader did with it stays.
const key = `bantam ${location.pathname}`, kept = JSON.parse(sessionStorage.getItem(key) ?? "null")
const inputs = all(".tools input"), folds = all("details")
sessionStorage.removeItem(key)
if (kept) {
  inputs.forEach((input, i) => { input.value = kept.words[i] ?? ""; input.dispatchEvent(new Event("input")) })
  folds.forEach((fold, i) => fold.open = kept.open[i] ?? false)
  scrollTo({ top: kept.top, behavior: "instant" })
}
function loadAgain() {
  const now = { top: scrollY, words: inputs.map(input => input.value), open: folds.map(fold => fold.open) }
  sessionStorage.setItem(key, JSON.stringify(now))
  location.reload()
}
if (page.dataset.running) setTimeout(loadAgain, Number(page.dataset.running))
